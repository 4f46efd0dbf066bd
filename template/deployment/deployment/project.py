"""Where the parts of this project are, and the programs that it needs."""

import os
from pathlib import Path

from deployment.answers import TASKS_FOLDER

PROJECT = Path(__file__).resolve().parents[2]
ORCHESTRATOR = PROJECT / "orchestrator"
TASKS = PROJECT / TASKS_FOLDER


def task_folders() -> list[Path]:
    """The folders with tasks, `TASKS` first."""
    folders = sorted(path.parents[1] for path in PROJECT.glob("*/tasks/__init__.py"))
    return sorted(folders, key=lambda folder: folder != TASKS)


def name_in_cloud(folder: Path, first: str) -> str:
    """The name in Google Cloud of what runs the tasks in a folder, as infra/ has it.

    Args:
        folder: The folder.
        first: The name of what runs those in `TASKS`. The others' start with it.
    """
    if folder == TASKS:
        return first
    return f"{first}-{folder.name.replace('_', '-')}"


UV = os.environ.get("UV", "uv")  # `uv run` sets it to its own path
