"""Where the parts of this project are, and what its settings are."""

import tomllib
from pathlib import Path

from dotenv import dotenv_values
from local_cloud.answers import TASKS_FOLDER

PROJECT = Path(__file__).resolve().parents[2]
ORCHESTRATOR = PROJECT / "orchestrator"
TASKS = PROJECT / TASKS_FOLDER
GCP_PIPES = PROJECT / "packages" / "gcp-pipes" / "src" / "gcp_pipes"


class SettingsError(Exception):
    """The settings are incomplete or contradict each other."""


def task_folders() -> list[Path]:
    """The folders with tasks, the one that the template rendered first."""
    folders = sorted(path.parents[1] for path in PROJECT.glob("*/tasks/__init__.py"))
    return sorted(folders, key=lambda folder: folder != TASKS)


def setting(variable: str) -> str:
    """A setting of the orchestrator that is the same here as in Google Cloud, such as a bucket.

    Args:
        variable: The environment variable of the setting.

    Raises:
        SettingsError: It is not set.
    """
    for name in (".env", ".env.example"):
        if value := dotenv_values(ORCHESTRATOR / name).get(variable):
            return value
    raise SettingsError(
        f"{variable} is set neither in orchestrator/.env nor in orchestrator/.env.example."
    )


def deployed_settings() -> dict[str, str]:
    """The settings in `orchestrator/.env`, with which Dagster calls what is deployed."""
    return _variables_in(ORCHESTRATOR)


def root_module() -> str:
    """The orchestrator's package, as `dg` finds it."""
    configuration = tomllib.loads((ORCHESTRATOR / "pyproject.toml").read_text())
    module: str = configuration["tool"]["dg"]["project"]["root_module"]
    return module


def own_secrets(folder: Path) -> dict[str, str]:
    """The variables in the `.env` of a folder with tasks, which are secrets in Google Cloud.

    Args:
        folder: The folder.
    """
    return _variables_in(folder)


def _variables_in(folder: Path) -> dict[str, str]:
    return {name: value or "" for name, value in dotenv_values(folder / ".env").items()}
