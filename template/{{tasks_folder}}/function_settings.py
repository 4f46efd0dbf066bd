"""The setting that only a function has."""

import os

from settings import seconds

_LONGEST_TIMEOUT = 3600.0  # seconds: the limit of Google Cloud


def function_timeout() -> float:
    """The function's own timeout, in seconds.

    From `CLOUD_RUN_TIMEOUT_SECONDS`, which Google Cloud may set, or `FUNCTION_TIMEOUT`, which the
    deployment sets. Without either, it is the longest timeout that Google Cloud allows.

    Raises:
        SettingsError: The variable is not a positive number.
    """
    for variable in ("CLOUD_RUN_TIMEOUT_SECONDS", "FUNCTION_TIMEOUT"):
        if os.environ.get(variable):
            return seconds(variable, "the function's timeout")
    return _LONGEST_TIMEOUT
