"""Settings of the tasks, from the environment variables of what runs them."""

import math
import os

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
            "messages from, in the environment variables of what runs the tasks."
        )
    return bucket


def heartbeat_interval() -> float:
    """How long a call stores nothing, at most, in seconds: `HEARTBEAT_INTERVAL`, by default 15.

    For Dagster, a task that has stored nothing for two and a half intervals is dead.

    Raises:
        SettingsError: The variable is not a positive number.
    """
    if not os.environ.get("HEARTBEAT_INTERVAL"):
        return _HEARTBEAT_INTERVAL
    return seconds("HEARTBEAT_INTERVAL", "the interval of heartbeats")


def seconds(variable: str, meaning: str) -> float:
    """The value of a variable that is a number of seconds.

    Args:
        variable: The name of the variable, which is set.
        meaning: What it is, for the error.

    Raises:
        SettingsError: It is not a positive number.
    """
    text = os.environ[variable]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise SettingsError(f"{variable} must be {meaning} in seconds; it is {text!r}.")
    return value


def forward_output() -> bool:
    """Whether to send what tasks print to Dagster, from `FORWARD_OUTPUT`. By default `true`.

    Raises:
        SettingsError: The variable is neither `true` nor `false`.
    """
    text = os.environ.get("FORWARD_OUTPUT") or "true"
    if text not in ("true", "false"):
        raise SettingsError(f"FORWARD_OUTPUT must be true or false; it is {text!r}.")
    return text == "true"
