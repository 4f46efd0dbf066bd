"""Settings from the environment variables of the function."""

import math
import os

_LONGEST_TIMEOUT = 3600.0  # seconds: the limit of Google Cloud
_HEARTBEAT_INTERVAL = 15.0  # seconds


class SettingsError(Exception):
    """A setting is missing or malformed."""


def messages_bucket() -> str:
    """The name of the bucket for messages to Dagster, from `MESSAGES_BUCKET`.

    Raises:
        SettingsError: The variable is not set.
    """
    bucket = os.environ.get("MESSAGES_BUCKET")
    if not bucket:
        raise SettingsError(
            "MESSAGES_BUCKET is not set. Set it to the name of the bucket that Dagster reads "
            "messages from, in the function's environment variables."
        )
    return bucket


def function_timeout() -> float:
    """The function's own timeout, in seconds.

    From `CLOUD_RUN_TIMEOUT_SECONDS`, which Google Cloud may set, or `FUNCTION_TIMEOUT`, which the
    deployment sets. Without either, it is the longest timeout that Google Cloud allows.

    Raises:
        SettingsError: The variable is not a positive number.
    """
    for variable in ("CLOUD_RUN_TIMEOUT_SECONDS", "FUNCTION_TIMEOUT"):
        if os.environ.get(variable):
            return _seconds(variable, "the function's timeout")
    return _LONGEST_TIMEOUT


def heartbeat_interval() -> float:
    """How long a call stores nothing, at most, in seconds: `HEARTBEAT_INTERVAL`, by default 15.

    For Dagster, a function that has stored nothing for two and a half intervals is dead.

    Raises:
        SettingsError: The variable is not a positive number.
    """
    if not os.environ.get("HEARTBEAT_INTERVAL"):
        return _HEARTBEAT_INTERVAL
    return _seconds("HEARTBEAT_INTERVAL", "the interval of heartbeats")


def _seconds(variable: str, meaning: str) -> float:
    text = os.environ[variable]
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise SettingsError(f"{variable} must be {meaning} in seconds; it is {text!r}.")
    return seconds


def forward_output() -> bool:
    """Whether to send what tasks print to Dagster, from `FORWARD_OUTPUT`. By default `true`.

    Raises:
        SettingsError: The variable is neither `true` nor `false`.
    """
    text = os.environ.get("FORWARD_OUTPUT") or "true"
    if text not in ("true", "false"):
        raise SettingsError(f"FORWARD_OUTPUT must be true or false; it is {text!r}.")
    return text == "true"
