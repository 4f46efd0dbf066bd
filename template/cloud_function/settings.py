"""The function's settings, from its environment."""

import math
import os

_LONGEST_TIMEOUT = 3600.0  # seconds: the limit of Google Cloud


class SettingsError(Exception):
    """A setting is missing or invalid."""


def messages_bucket() -> str:
    """The name of the messages bucket, from `MESSAGES_BUCKET`.

    Raises:
        SettingsError: The variable is not set.
    """
    bucket = os.environ.get("MESSAGES_BUCKET")
    if not bucket:
        raise SettingsError(
            "MESSAGES_BUCKET is not set. In the function's environment variables, set it to the "
            "name of the bucket from which Dagster reads messages."
        )
    return bucket


def function_timeout() -> float:
    """The function's own timeout, in seconds.

    From `CLOUD_RUN_TIMEOUT_SECONDS`, which Google Cloud may set, or `FUNCTION_TIMEOUT`, which the
    deployment sets. The default is the longest timeout of Google Cloud.

    Raises:
        SettingsError: The variable is not a positive number.
    """
    for variable in ("CLOUD_RUN_TIMEOUT_SECONDS", "FUNCTION_TIMEOUT"):
        if text := os.environ.get(variable):
            break
    else:
        return _LONGEST_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise SettingsError(
            f"{variable} must be the function's timeout in seconds; it is {text!r}."
        )
    return seconds


def forward_output() -> bool:
    """Whether what tasks print is sent to Dagster, from `FORWARD_OUTPUT`. The default is true.

    Raises:
        SettingsError: The variable is neither true nor false.
    """
    text = os.environ.get("FORWARD_OUTPUT") or "true"
    if text not in ("true", "false"):
        raise SettingsError(f"FORWARD_OUTPUT must be true or false; it is {text!r}.")
    return text == "true"
