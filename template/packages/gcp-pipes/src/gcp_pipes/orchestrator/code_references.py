"""Links assets to their source code: "Open in editor" on Dagster's page."""

from pathlib import Path

import dagster as dg

CLOUD_FUNCTION, CLOUD_RUN_JOB = "cloud_function", "cloud_run_job"
"""The folder with the tasks, next to that of the Dagster project: of a function, or of a job."""


def code_references(
    definition: str, *, task: str, function: str | None = None
) -> dict[str, dg.CodeReferencesMetadataValue]:
    """Metadata for an asset whose Python function has the name of its task.

    Args:
        definition: The `__file__` of the module that defines the asset.
        task: The name of the task.
        function: The folder with the task, if it is not that of the first function or job.
    """
    file = Path(definition)
    references = [_reference(file, f"def {task}(", "definition")]
    for parent in file.parents:
        for folder in [function] if function else [CLOUD_FUNCTION, CLOUD_RUN_JOB]:
            source = parent / folder / "tasks" / f"{task}.py"
            if source.is_file():
                references.append(task_reference(source))
    return link_to(*references)


def task_reference(source: Path) -> dg.LocalFileCodeReference:
    """The reference to a task.

    Args:
        source: The path of its source.
    """
    return _reference(source, "def run(", "task")


def link_to(*references: dg.LocalFileCodeReference) -> dict[str, dg.CodeReferencesMetadataValue]:
    """The metadata of an asset with these references.

    Args:
        references: The references.
    """
    value = dg.CodeReferencesMetadataValue(code_references=[*references])
    return {"dagster/code_references": value}


def _reference(file: Path, start: str, label: str) -> dg.LocalFileCodeReference:
    """The reference to the first line that begins with `start`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    line = next((n for n, line in enumerate(lines, 1) if line.startswith(start)), 1)
    return dg.LocalFileCodeReference(file_path=str(file), line_number=line, label=label)
