"""The function's settings, from its environment."""

import os

_MARGIN = 10.0  # seconds, to tell Dagster of a task that was stopped


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


def task_timeout() -> float | None:
    """Seconds that a task may take: a little less than the function's timeout. None for no limit.

    Google Cloud tells the function its timeout by `CLOUD_RUN_TIMEOUT_SECONDS`.

    Raises:
        SettingsError: The variable is set to something that is no positive number.
    """
    text = os.environ.get("CLOUD_RUN_TIMEOUT_SECONDS")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise SettingsError(
            f"CLOUD_RUN_TIMEOUT_SECONDS must be the function's timeout in seconds; it is {text!r}."
        )
    return max(seconds - _MARGIN, seconds / 2)
