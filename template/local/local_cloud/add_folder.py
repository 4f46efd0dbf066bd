"""Adds another folder with tasks, which run in an environment of their own.

The new folder has the entry point, the settings, `lake.py` and the dependencies of the first one,
but none of its tasks, except `ping`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from local_cloud.answers import ENTRY_FILES, KIND, OPTION, TASKS_FOLDER
from local_cloud.console import console, failed
from local_cloud.processes import UV
from local_cloud.project import PROJECT, TASKS, SettingsError

_COPIED = (*ENTRY_FILES, "settings.py", "lake.py", "tasks/__init__.py", "tasks/ping.py")
_LONGEST_NAME = 20  # characters: the name in Google Cloud has at most 49
_TEST = '''"""The tasks in this folder."""

from gcp_pipes.external.testing import RecordingPipesContext
from tasks import ping


def test_ping_succeeds() -> None:
    ping.run(RecordingPipesContext("ping"), {})
'''


def main() -> int:
    """Add the folder on the command line, and return the exit status."""
    name = sys.argv[1]
    try:
        folder = add_folder(name)
    except SettingsError as error:
        failed(str(error))
        return 1
    option = OPTION.format(folder=name, hyphens=name.replace("_", "-"))
    locked = subprocess.run([UV, "lock", "--quiet"], cwd=folder, check=False)
    console.print(
        f"Added {name}/. Add modules to {name}/tasks/, and `{option}` to the defs.yaml of "
        "their assets. `uv add` and `uv remove` in the folder change its dependencies. If "
        "`just dev` is running, restart it.",
        markup=False,
    )
    return locked.returncode


def add_folder(name: str) -> Path:
    """Create the folder.

    Args:
        name: The name of the folder, and the end of its name in Google Cloud.

    Returns:
        The folder.

    Raises:
        SettingsError: The name is not possible, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > _LONGEST_NAME:
        raise SettingsError(
            f"{name!r} cannot be the name of a {KIND}. Use up to {_LONGEST_NAME} lowercase "
            "letters, digits and single underscores, and start with a letter."
        )
    folder = PROJECT / name
    if folder.exists() or name == "build":  # the folder of the bundles
        raise SettingsError(f"The name {name} is taken. Choose another one.")
    (folder / "tests").mkdir(parents=True)
    (folder / "tasks").mkdir()
    for file in _COPIED:
        if (TASKS / file).exists():  # the owner may have deleted lake.py
            shutil.copy(TASKS / file, folder / file)
    (folder / "tests" / "test_ping.py").write_text(_TEST)
    configuration = (TASKS / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(_configure(configuration, name))
    _let_dependabot_update(name)
    return folder


def _configure(configuration: str, name: str) -> str:
    """The `pyproject.toml` of the new folder, without what is tested with the first one."""
    suffix = name.replace("_", "-")
    configuration = re.sub(rf'(?m)^name = "(.+)-{KIND}"$', rf'name = "\1-{suffix}"', configuration)
    configuration = re.sub(r"(?m)^testpaths = .*$", 'testpaths = ["tests"]', configuration)
    return re.sub(r'(?m)^    "\.\./.*",\n', "", configuration)


def _let_dependabot_update(name: str) -> None:
    for file in PROJECT.glob(".*/dependabot.yml"):
        known = f"      - /{TASKS_FOLDER}\n"
        places = -1 if KIND == "job" else 1  # the second one is about images
        file.write_text(file.read_text().replace(known, f"{known}      - /{name}\n", places))


if __name__ == "__main__":
    sys.exit(main())
