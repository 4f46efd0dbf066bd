"""Materializes all assets once, end to end, on your machine: `just demo`."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from local_cloud.cloud import cloud_storage
from local_cloud.console import console, failed, show_log, show_report, step
from local_cloud.credentials import uv_run
from local_cloud.processes import UV, ProcessError, interrupted_once, run_to_end
from local_cloud.project import ORCHESTRATOR, SettingsError, task_folders
from local_cloud.targets import TARGETS

# `make demo` of the template runs the demo in a folder, but its reader is in another one.
_NEXT_COMMAND = os.environ.get("NEXT_COMMAND", "uv run just dev")


def main() -> int:
    """Run the demo, and return the exit status."""
    started = time.monotonic()
    try:
        with interrupted_once(), temporary_folder() as folder:
            report = run_demo(folder)
    except KeyboardInterrupt:
        console.print("Interrupted. All processes are stopped.")
        return 130
    except ProcessError as error:
        failed(f"{error}. Its output is above.")
        return 1
    except SettingsError as error:
        failed(str(error))
        return 1
    console.print(
        f"Done in {time.monotonic() - started:.1f} s. All processes are stopped, and the temporary "
        f"folder is deleted. [bold]{_NEXT_COMMAND}[/bold] starts Dagster's web page."
    )
    return 1 if report["errors"] else 0


def run_demo(folder: Path) -> dict[str, Any]:
    """Start the local cloud, materialize all assets, print the results, stop the local cloud.

    Args:
        folder: Where to store the buckets, the report and Dagster's log.

    Returns:
        The report of `local_cloud.materialize_all`.
    """
    prepare_environments()
    with ExitStack() as stack:
        with step("Starting the emulated Cloud Storage"):
            storage = stack.enter_context(cloud_storage(folder / "buckets"))
        settings = {**storage}
        for target, start in TARGETS.items():
            with step(f"Starting {target}"):
                settings |= stack.enter_context(start(storage))
        with step("Materializing the assets in Dagster"):
            report = materialize(folder, settings)
        console.print("\n[bold]The log of the runs in Dagster[/bold]")
        for level, message in report["logs"]:
            show_log(level, message)
        show_report(report)
        console.print()
        with step("Stopping"):
            stack.close()
    return report


def prepare_environments() -> None:
    """Install the dependencies of the tasks and of Dagster."""
    for project in (*task_folders(), ORCHESTRATOR):
        prepare(project)


def prepare(project: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
    """Install the dependencies of one part of this project.

    Args:
        project: Its folder.
        options: Options of `uv sync`.
        environment: Variables for uv.
    """
    console.print(f"Preparing {project.name} ...")
    command = [UV, "sync", *options]
    run_to_end("uv sync", command, environment=environment or {}, directory=project)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for this process and its children, which is deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        os.environ["TMPDIR"] = folder
        yield Path(folder)


def materialize(folder: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Materialize all assets in a process of the orchestrator's environment.

    Args:
        folder: Where to store the report and Dagster's log.
        settings: The environment variables of the local cloud.

    Returns:
        The report of `local_cloud.materialize_all`.

    Raises:
        ProcessError: Dagster failed before it wrote a report.
    """
    report = folder / "report.json"
    command = uv_run(settings, "python", "-m", "local_cloud.materialize_all", str(report))
    log = folder / "dagster.log"
    with log.open("w") as output:
        try:
            run_to_end(
                "Dagster", command, environment=settings, directory=ORCHESTRATOR, output=output
            )
        except ProcessError:
            console.out(log.read_text())
            raise
    result: dict[str, Any] = json.loads(report.read_text())
    return result


if __name__ == "__main__":
    sys.exit(main())
