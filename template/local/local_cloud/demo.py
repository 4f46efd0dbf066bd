"""One materialization, from end to end, on this machine: `just demo`."""

import json
import os
import sys
import tempfile
import time
import tomllib
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
    """Run the demo; return the exit status."""
    started = time.monotonic()
    try:
        with interrupted_once(), temporary_folder() as folder:
            report = run_demo(folder)
    except KeyboardInterrupt:
        console.print("Interrupted. All that was started has been stopped.")
        return 130
    except ProcessError as error:
        failed(f"{error}. Its output is above.")
        return 1
    except SettingsError as error:
        failed(str(error))
        return 1
    console.print(
        f"Done in {time.monotonic() - started:.1f} s. All that was started has been stopped, and "
        "its temporary folder is gone. [bold]uv run just dev[/bold] keeps its tables, in .local/."
    )
    return 1 if report["errors"] else 0


def run_demo(folder: Path) -> dict[str, Any]:
    """Start the local cloud, materialize all assets, show what happened, stop the local cloud.

    Args:
        folder: Where to put the data lake, the report and Dagster's log.

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
    """Install what the function and Dagster need; nothing to do from the second time on."""
    for project in (CLOUD_FUNCTION, ORCHESTRATOR):
        console.print(f"Preparing {project.name} ...")
        run_to_end("uv sync", [UV, "sync"], environment={}, directory=project)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed in the end, with all that the processes started here put aside."""
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        os.environ["TMPDIR"] = folder
        yield Path(folder)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show that something is going on, and how long it took.

    Args:
        title: What is going on, in up to 40 characters.
    """
    started = time.monotonic()
    if not console.is_terminal:
        console.print(f"{title} ...")
    with console.status(f"{title} ..."):  # turns, where there is a terminal
        yield
    console.print(f"{title:<40} {time.monotonic() - started:5.1f} s")


def materialize(folder: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Materialize all assets, in a process of the orchestrator's environment.

    Args:
        folder: Where to put the report and Dagster's log.
        settings: The environment variables by which Dagster finds the function, its messages and
            the data lake.

    Returns:
        The report of `local_cloud.materialize`.

    Raises:
        ProcessError: Dagster ended without a report.
    """
    report = folder / "report.json"
    command = [UV, "run", "python", "-m", "local_cloud.materialize", root_module(), str(report)]
    log = folder / "dagster.log"
    with log.open("w") as output:
        try:
            run_to_end(
                "Dagster",
                command,
                environment=settings,
                directory=ORCHESTRATOR,
                output=output,
            )
        except ProcessError:
            console.out(log.read_text())
            raise
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def root_module() -> str:
    """The orchestrator's package, as `dg` knows it."""
    configuration = tomllib.loads((ORCHESTRATOR / "pyproject.toml").read_text())
    module: str = configuration["tool"]["dg"]["project"]["root_module"]
    return module


def show(report: Mapping[str, Any]) -> None:
    """Print the assets, the log of the run, and the errors.

    Args:
        report: The report of `local_cloud.materialize`.
    """
    for key, asset in report["assets"].items():
        title = f"\n{key}"
        if partitions := asset["partitions"]:
            title += f", partition {partitions[-1]}, one of {len(partitions)} that were made"
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        table.add_row("data version", Text(str(asset["data_version"])))
        for name, value in asset["metadata"].items():
            table.add_row(name, Markdown(value) if name == "preview" else Text(value))
        console.print(table, soft_wrap=False)
    console.print("\n[bold]Log, as it stands in Dagster[/bold]")
    for level, message in report["logs"]:
        console.print(f"  {level:<8} {message}", markup=False)
    for check, passed in report["checks"]:
        console.print(f"\nThe check {check} has {'passed' if passed else 'failed'}.", markup=False)
    for error in report["errors"]:
        console.print()
        failed(error)


def failed(reason: str) -> None:
    """Print why something failed, as it stands: brackets in it are no markup.

    Args:
        reason: Why: a sentence or more.
    """
    console.print(Text.assemble(("Failed: ", "red"), reason))


if __name__ == "__main__":
    sys.exit(main())
