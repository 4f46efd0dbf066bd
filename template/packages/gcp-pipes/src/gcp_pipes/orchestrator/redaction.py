"""Hides secrets in what a function responds, before it is in the event log."""

import re
from typing import Any

_SECRET = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|api.?key|private.?key|authorization",
    re.IGNORECASE,
)
_REDACTED = "(hidden: its name is that of a secret)"


def redact(value: Any, name: str = "") -> Any:
    """A value of JSON, with a text instead of each text whose name is that of a secret.

    Args:
        value: The value, whose members are searched, too.
        name: Its name.
    """
    match value:
        case dict():
            return {key: redact(each, key) for key, each in value.items()}
        case list():
            return [redact(each, name) for each in value]
        case str() if _SECRET.search(name):
            return _REDACTED
    return value
