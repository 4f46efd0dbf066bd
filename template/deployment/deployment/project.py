"""Where the parts of this project are, and the programs that it needs."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ORCHESTRATOR = PROJECT / "orchestrator"
CLOUD_FUNCTION = PROJECT / "cloud_function"


def function_folders() -> list[Path]:
    """The folders of the functions: those with tasks, `cloud_function/` first."""
    folders = sorted(path.parents[1] for path in PROJECT.glob("*/tasks/__init__.py"))
    return sorted(folders, key=lambda folder: folder != CLOUD_FUNCTION)


def url_variable(folder: Path) -> str:
    """The environment variable of Dagster with the URL of a function.

    Args:
        folder: The folder of the function.
    """
    name = folder.name.upper().replace("-", "_")
    return "FUNCTION_URL" if folder == CLOUD_FUNCTION else f"FUNCTION_URL_{name}"


def name_in_cloud(folder: Path, first: str) -> str:
    """The name in Google Cloud of what runs the tasks in a folder, as infra/ has it.

    Args:
        folder: The folder.
        first: The name of what runs the tasks in `cloud_function/`. The others' start with it.
    """
    if folder == CLOUD_FUNCTION:
        return first
    return f"{first}-{folder.name.replace('_', '-')}"


UV = os.environ.get("UV", "uv")  # `uv run` sets it to its own path
