"""Hides your own Google Cloud credentials from programs that use the local cloud.

delta-rs prefers those in your home folder to the metadata server. It would send a token of yours
to the local cloud, or fail if they have expired. So these programs get another home folder.
"""

import os
from collections.abc import Mapping

from local_cloud.processes import UV

HOME = "LOCAL_CLOUD_HOME"
"""The variable with the home folder, if the programs get another one."""

OWN_HOME = os.environ.get("HOME", "")
"""Your home folder, in which uv has its cache."""

_OWN_CREDENTIALS = (
    *("CLOUDSDK_CONFIG", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"),
    *("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SERVICE_ACCOUNT_PATH", "SERVICE_ACCOUNT"),
)


def uv_run(settings: Mapping[str, str], *command: str) -> list[str]:
    """The command that runs a program in its project's environment.

    uv itself needs your home folder.

    Args:
        settings: The variables that `cloud_storage` yielded.
        command: The program and its arguments.
    """
    hidden = [word for name in _OWN_CREDENTIALS for word in ("-u", name)]
    home = ["env", *hidden, f"HOME={settings[HOME]}"] if HOME in settings else []
    return [UV, "run", *home, *command]


def process_variables(settings: Mapping[str, str]) -> dict[str, str | None]:
    """The environment variables of a process that uses the local cloud; None means not set.

    Args:
        settings: The variables that `cloud_storage` yielded.
    """
    if HOME not in settings:
        return {**settings}
    return {**settings, **dict.fromkeys(_OWN_CREDENTIALS), "HOME": settings[HOME]}


def use(settings: Mapping[str, str]) -> None:
    """Let this process use the local cloud.

    Args:
        settings: The variables that `cloud_storage` yielded.
    """
    for name, value in process_variables(settings).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
