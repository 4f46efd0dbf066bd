"""Hides secrets in what a function responds, before it is in the event log."""

import re
from typing import Any

_SECRET = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|cookie|signature|authorization"
    r"|(api|access|private).?key",
    re.IGNORECASE,
)
_REDACTED = "(hidden: its name is that of a secret)"


def redact(value: Any, name: str = "", *, is_secret: bool = False) -> Any:
    """A value of JSON, without each text whose name, or that of what has it, is of a secret.

    Args:
        value: The value, whose members are searched, too.
        name: Its name.
        is_secret: Whether it is within a secret.

    Raises:
        RecursionError: The value is too deep.
    """
    is_secret = is_secret or bool(_SECRET.search(name))
    match value:
        case dict():
            return {key: redact(each, key, is_secret=is_secret) for key, each in value.items()}
        case list():
            return [redact(each, is_secret=is_secret) for each in value]
        case str() if is_secret:
            return _REDACTED
    return value
