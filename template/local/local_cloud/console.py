"""What the recipes read from the command line, and what they print."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


def json_object(text: str) -> dict[str, Any]:
    """The value of an option that is a JSON object.

    Args:
        text: The option, as the user typed it.

    Raises:
        argparse.ArgumentTypeError: It is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"it must be a JSON object, not {text}")
    return value


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


def show_asset(title: str, data_version: str | None, metadata: Mapping[str, str]) -> None:
    """Print what a task reported of an asset.

    Args:
        title: The asset's key, and what else is to be in the title.
        data_version: The data version, if there is one.
        metadata: The metadata as text, by name. A value that begins with `|` is a Markdown table.
    """
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", show_header=False)
    table.add_row("data version", Text(str(data_version)))
    for name, value in metadata.items():
        table.add_row(name, Markdown(value) if value.startswith("| ") else Text(value))
    console.print(table, soft_wrap=False)


def show_check(name: str, passed: bool) -> None:
    """Print the result of an asset check.

    Args:
        name: The name of the check.
        passed: Whether it passed.
    """
    console.print(f"\nThe check {name} {'passed' if passed else 'failed'}.", markup=False)


def show_log(level: str, message: str) -> None:
    """Print a log line of a run.

    Args:
        level: Its level.
        message: Its text.
    """
    console.print(f"  {level:<8} {message}", markup=False)


def show_report(report: Mapping[str, Any]) -> None:
    """Print the assets, the checks and the errors of runs.

    Args:
        report: What `local_cloud.results` has collected.
    """
    for key, asset in report["assets"].items():
        title = key
        if partition := asset["partition"]:
            title = f"{key}, partition {partition} (of {asset['partitions']} materialized)"
        show_asset(title, asset["data_version"], asset["metadata"])
    for check, passed in report["checks"]:
        show_check(check, passed)
    for error in report["errors"]:
        console.print()
        failed(error)


def failed(reason: str) -> None:
    """Print an error literally: brackets in it are not markup.

    Args:
        reason: The error.
    """
    console.print(Text.assemble(("Failed: ", "red"), reason))
