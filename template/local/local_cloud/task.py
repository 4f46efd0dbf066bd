"""Runs one task in this process, without Dagster and without a server: `just task NAME`.

It runs in the environment of the task's folder, with the secrets in its `.env`. `breakpoint()`
works in the task.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dotenv import load_dotenv
from local_cloud.console import console, failed, json_object, show_asset, show_check
from local_cloud.credentials import use
from local_cloud.instance import kept_storage, running_dev
from local_cloud.processes import ProcessError, interrupted_once
from local_cloud.project import PROJECT, SettingsError
from werkzeug.exceptions import BadRequest

from gcp_pipes.external import find_task
from gcp_pipes.external.testing import RecordingPipesContext


def main() -> int:
    """Run the task, and return the exit status."""
    parser = argparse.ArgumentParser(prog="just task", description="Run one task, without Dagster.")
    parser.add_argument("task", help="a module in tasks/, without .py")
    parser.add_argument("--event", type=json_object, default={}, help="inputs: a JSON object")
    parser.add_argument("--asset", help="the key of the asset (default: the name of the task)")
    parser.add_argument("--partition", help="the partition key")
    parser.add_argument(
        "--lake", metavar="DIR", help="a folder for the data lake, instead of a bucket"
    )
    options = parser.parse_args()
    load_dotenv(".env")
    asset_key = options.asset or options.task
    pipes = RecordingPipesContext(asset_key, partition_key=options.partition)
    _print_logs(pipes)
    import tasks  # those in the working directory

    try:
        with interrupted_once(), _storage(options.lake) as storage:
            use(storage)
            event = {"task": options.task, "dl_bucket": storage["LAKE_URI"], **options.event}
            find_task(tasks, pipes, event)(pipes, event)
    except KeyboardInterrupt:
        failed("interrupted")
        return 130
    except BadRequest as error:
        failed(str(error.description))
        return 1
    except (ProcessError, SettingsError) as error:
        failed(str(error))
        return 1
    show_reports(pipes)
    return 0


@contextmanager
def _storage(lake: str | None) -> Iterator[Mapping[str, str]]:
    """The storage of the running `just dev`, or storage that runs during the block."""
    if lake:
        yield {"LAKE_URI": str(PROJECT / lake)}
    elif (dev := running_dev()) and "LAKE_URI" in dev["settings"]:
        yield dev["settings"]
    else:
        with kept_storage() as settings:
            yield settings


def show_reports(pipes: RecordingPipesContext) -> None:
    """Print what a task reported.

    Args:
        pipes: The context that the task received.
    """
    for asset in [*pipes.materializations.values(), *pipes.observations]:
        metadata = {name: _text(value) for name, value in asset.metadata.items()}
        show_asset(asset.asset_key, asset.data_version, metadata)
    for check in pipes.checks.values():
        show_check(f"{check.asset_key}:{check.check_name}", check.passed)
    for payload in pipes.custom_messages:
        console.print(f"\nCustom message: {payload}", markup=False)


def _print_logs(pipes: RecordingPipesContext) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    pipes.log.addHandler(handler)


def _text(value: Any) -> str:
    match value:
        case str():
            return value
        case {"columns": [*columns]}:
            return ", ".join(f"{column['name']} {column['type']}" for column in columns)
        case {"deps_by_column": dict() as lineage}:
            return "; ".join(
                f"{column} from {'/'.join(dep['asset_key'])}.{dep['column_name']}"
                for column, deps in lineage.items()
                for dep in deps
            )
    return json.dumps(value)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main())
