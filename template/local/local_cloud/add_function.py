"""Adds another cloud function to the project: `just add-function NAME`.

The new folder has the entry point, the settings, `lake.py` and the dependencies of
`cloud_function/`, but none of its tasks, except `ping`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from local_cloud.cloud import CLOUD_FUNCTION, PROJECT, SettingsError
from local_cloud.console import console, failed
from local_cloud.processes import UV

_COPIED = ("main.py", "settings.py", "lake.py", "tasks/__init__.py", "tasks/ping.py")
_LONGEST_NAME = 20  # characters: the function's name in Google Cloud has at most 49
_TEST = '''"""The tasks of this function."""

from gcp_pipes.external.testing import RecordingPipesContext
from tasks import ping


def test_ping_succeeds() -> None:
    ping.run(RecordingPipesContext("ping"), {})
'''


def main() -> int:
    """Add the function on the command line, and return the exit status."""
    name = sys.argv[1]
    try:
        folder = add_function(name)
    except SettingsError as error:
        failed(str(error))
        return 1
    locked = subprocess.run([UV, "lock", "--quiet"], cwd=folder, check=False)
    console.print(
        f"Added {name}/. Add modules to {name}/tasks/, and `function: {name}` to the defs.yaml of "
        "their assets. `uv add` and `uv remove` in the folder change its dependencies. If "
        "`just dev` is running, restart it.",
        markup=False,
    )
    return locked.returncode


def add_function(name: str) -> Path:
    """Create the folder of the function.

    Args:
        name: The name of the folder, and the end of the function's name in Google Cloud.

    Returns:
        The folder.

    Raises:
        SettingsError: The name is not possible, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > _LONGEST_NAME:
        raise SettingsError(
            f"{name!r} cannot be the name of a function. Use up to {_LONGEST_NAME} lowercase "
            "letters, digits and single underscores, and start with a letter."
        )
    folder = PROJECT / name
    if folder.exists() or name == "build":  # the folder of the bundles
        raise SettingsError(f"The name {name} is taken. Choose another one.")
    (folder / "tests").mkdir(parents=True)
    (folder / "tasks").mkdir()
    for file in _COPIED:
        if (CLOUD_FUNCTION / file).exists():  # the owner may have deleted lake.py
            shutil.copy(CLOUD_FUNCTION / file, folder / file)
    (folder / "tests" / "test_ping.py").write_text(_TEST)
    configuration = (CLOUD_FUNCTION / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(_configure(configuration, name))
    _let_dependabot_update(name)
    return folder


def _configure(configuration: str, name: str) -> str:
    """The `pyproject.toml` of the new function, without what is tested with `cloud_function/`."""
    suffix = name.replace("_", "-")
    configuration = re.sub(r'(?m)^name = "(.+)-function"$', rf'name = "\1-{suffix}"', configuration)
    configuration = re.sub(r"(?m)^testpaths = .*$", 'testpaths = ["tests"]', configuration)
    return re.sub(r'(?m)^    "\.\./.*",\n', "", configuration)


def _let_dependabot_update(name: str) -> None:
    for file in PROJECT.glob(".*/dependabot.yml"):
        known = "      - /cloud_function\n"
        file.write_text(file.read_text().replace(known, f"{known}      - /{name}\n"))


if __name__ == "__main__":
    sys.exit(main())
