"""The function's settings, from its environment."""

import math
import os

_LONGEST_TIMEOUT = 3600.0  # seconds: no function of Google Cloud may take more


class SettingsError(Exception):
    """A setting is missing or malformed."""


def messages_bucket() -> str:
    """Name of the bucket that takes the messages to Dagster, from `MESSAGES_BUCKET`.

    Raises:
        SettingsError: The variable is not set.
    """
    bucket = os.environ.get("MESSAGES_BUCKET")
    if not bucket:
        raise SettingsError(
            "MESSAGES_BUCKET is not set. Set it, in the function's environment variables, to the "
            "name of the bucket that Dagster reads messages from."
        )
    return bucket


def function_timeout() -> float:
    """The function's own timeout in seconds: how long a request may take.

    From `CLOUD_RUN_TIMEOUT_SECONDS`, which Google Cloud may set, or else from `FUNCTION_TIMEOUT`,
    which the deployment sets. Without either, it is the longest timeout that there can be.

    Raises:
        SettingsError: A variable is set to something that is no positive number.
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
    """Whether Dagster gets what tasks print, from `FORWARD_OUTPUT`: `true`, unless it is `false`.

    Raises:
        SettingsError: The variable is set to something else.
    """
    text = os.environ.get("FORWARD_OUTPUT") or "true"
    if text not in ("true", "false"):
        raise SettingsError(f"FORWARD_OUTPUT must be true or false; it is {text!r}.")
    return text == "true"
