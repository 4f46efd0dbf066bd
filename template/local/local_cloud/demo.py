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

from local_cloud.cloud import (
    CLOUD_FUNCTION,
    ORCHESTRATOR,
    SettingsError,
    cloud_function,
    storage_emulator,
)
from local_cloud.processes import UV, ProcessError, interrupted_once, run_to_end
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


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
        "folder is deleted. [bold]uv run just dev[/bold] keeps its tables in .local/."
    )
    return 1 if report["errors"] else 0


def run_demo(folder: Path) -> dict[str, Any]:
    """Start the local cloud, materialize all assets, print the results, stop the local cloud.

    Args:
        folder: Where to store the data lake, the report and Dagster's log.

    Returns:
        The report of `local_cloud.materialize`.
    """
    prepare_environments()
    with ExitStack() as stack:
        with step("Starting the emulated Cloud Storage"):
            storage = stack.enter_context(storage_emulator())
        with step("Starting the cloud function"):
            function = stack.enter_context(cloud_function(storage))
        lake = {"LAKE_URI": str(folder / "lake")}
        with step("Materializing the assets in Dagster"):
            report = materialize(folder, {**storage, **function, **lake})
        show(report)
        console.print()
        with step("Stopping"):
            stack.close()
    return report


def prepare_environments() -> None:
    """Install the dependencies of the function and of Dagster."""
    for project in (CLOUD_FUNCTION, ORCHESTRATOR):
        console.print(f"Preparing {project.name} ...")
        run_to_end("uv sync", [UV, "sync"], environment={}, directory=project)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for this process and its children, which is deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        os.environ["TMPDIR"] = folder
        yield Path(folder)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show that the block is running, and then how long it took.

    Args:
        title: What the block does, in up to 40 characters.
    """
    started = time.monotonic()
    if not console.is_terminal:
        console.print(f"{title} ...")
    with console.status(f"{title} ..."):  # a spinner, in a terminal
        yield
    console.print(f"{title:<40} {time.monotonic() - started:5.1f} s")


def materialize(folder: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Materialize all assets in a process of the orchestrator's environment.

    Args:
        folder: Where to store the report and Dagster's log.
        settings: The environment variables with the function's URL, the messages bucket and the
            data lake.

    Returns:
        The report of `local_cloud.materialize`.

    Raises:
        ProcessError: Dagster failed before it wrote a report.
    """
    report = folder / "report.json"
    command = [UV, "run", "python", "-m", "local_cloud.materialize", str(report)]
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


def show(report: Mapping[str, Any]) -> None:
    """Print the assets, the log of the run, and the errors.

    Args:
        report: The report of `local_cloud.materialize`.
    """
    for key, asset in report["assets"].items():
        title = f"\n{key}"
        if partitions := asset["partitions"]:
            title += f", partition {partitions[-1]} (of {len(partitions)} materialized)"
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        table.add_row("data version", Text(str(asset["data_version"])))
        for name, value in asset["metadata"].items():
            table.add_row(name, Markdown(value) if name == "preview" else Text(value))
        console.print(table, soft_wrap=False)
    console.print("\n[bold]The log of the run in Dagster[/bold]")
    for level, message in report["logs"]:
        console.print(f"  {level:<8} {message}", markup=False)
    for check, passed in report["checks"]:
        console.print(f"\nThe check {check} {'passed' if passed else 'failed'}.", markup=False)
    for error in report["errors"]:
        console.print()
        failed(error)


def failed(reason: str) -> None:
    """Print an error literally: brackets in it are not markup.

    Args:
        reason: The error.
    """
    console.print(Text.assemble(("Failed: ", "red"), reason))


if __name__ == "__main__":
    sys.exit(main())
