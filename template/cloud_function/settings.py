"""The function's settings, from its environment."""

import os


class SettingsError(Exception):
    """A setting is missing."""


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
