"""Dagster's web page and the local cloud, which reload when you edit: `just dev`.

After an edit, what runs the tasks uses the new code, or Dagster reloads its definitions. Tables and
runs are kept in `.local/`. If the settings, in the environment or in `orchestrator/.env`, name what
is deployed, Dagster calls that, and only Dagster runs on this machine.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local_cloud.answers import KIND
from local_cloud.console import console, failed, step
from local_cloud.credentials import uv_run
from local_cloud.dagster_api import cancel_interrupted_runs, query_dagster
from local_cloud.dagster_output import DagsterOutput
from local_cloud.demo import prepare_environments
from local_cloud.dev_target import DevTarget, is_any_in
from local_cloud.dev_targets import IN_DEV
from local_cloud.instance import (
    choose_port,
    kept_storage,
    only_dev,
    publish,
    usual_ports,
)
from local_cloud.processes import (
    ProcessError,
    interrupted_once,
    is_listening,
    running,
)
from local_cloud.project import (
    GCP_PIPES,
    ORCHESTRATOR,
    SettingsError,
    deployed_settings,
    task_folders,
)
from local_cloud.targets import CALLED, TARGETS
from watchfiles import PythonFilter, watch

_NAMES_DEPLOYED = next(iter(CALLED.values()))  # with this setting, Dagster calls what is deployed

_RELOADS = "Reloads when you edit."
_RELOAD_DEFINITIONS = """
mutation {
  reloadWorkspace {
    ... on Workspace {
      locationEntries { locationOrLoadError { ... on PythonError { message causes { message } } } }
    }
    ... on PythonError { message }
  }
}
"""


def main() -> int:
    """Run until interrupted, and return the exit status."""
    options = read_options()

    def start(stack: ExitStack) -> None:
        stack.enter_context(only_dev())
        run(stack, options)

    return until_interrupted(start)


def until_interrupted(start: Callable[[ExitStack], None]) -> int:
    """Start servers, print why they end, and stop them.

    Args:
        start: Starts them on a stack, and runs until it is interrupted.

    Returns:
        The exit status.
    """
    try:
        with interrupted_once(), ExitStack() as stack:
            start(stack)
    except KeyboardInterrupt:
        console.print("\nAll processes are stopped.")
    except ProcessError as error:
        failed(f"{error}. Its output is above.")
        return 1
    except SettingsError as error:
        failed(str(error))
        return 1
    return 0


def read_options() -> argparse.Namespace:
    """The options on the command line."""
    parser = argparse.ArgumentParser(prog="just dev", description="Start the local cloud.")
    parser.add_argument("--port", type=int, help="the port of Dagster's web page")
    for target in IN_DEV.values():
        target.add_options(parser)
    parser.add_argument(
        "--lake", metavar="DIR", help="a folder for the data lake, instead of a bucket"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print all events and log lines of runs"
    )
    return parser.parse_args()


def run(stack: ExitStack, options: argparse.Namespace) -> None:
    """Start everything, and reload after edits until interrupted.

    Args:
        stack: Stops all processes when it is closed.
        options: The options on the command line.

    Raises:
        ProcessError: Dagster does not respond.
    """
    settings = read_settings()
    usual = usual_ports()
    dagster_port = choose_port("Dagster", "--port", options.port, next(usual))
    prepare_environments()
    targets: dict[str, DevTarget] = {}
    servers = {}
    local = {}
    if not names_deployed(settings):
        targets = {name: IN_DEV[name](start, options, usual) for name, start in TARGETS.items()}
        with step("Starting the emulated Cloud Storage"):
            storage = stack.enter_context(kept_storage(options.lake))
        servers["The storage emulator"] = storage["STORAGE_EMULATOR_HOST"]
        if "GOOGLE_BASE_URL" in storage:
            servers["The data lake"] = storage["GOOGLE_BASE_URL"]
        local = {**storage}
        for name, target in targets.items():
            with step(f"Starting {name}"):
                local |= stack.enter_context(target.start(storage))
        settings |= local
    started = time.time()
    with step("Starting Dagster"):
        output = DagsterOutput(verbose=options.verbose)
        servers["Dagster"] = stack.enter_context(dagster(local, dagster_port, output))
    for run_id in cancel_interrupted_runs(servers["Dagster"], started):
        console.print(
            f"run {run_id[:8]} was interrupted when Dagster ended, and is now canceled. To run it "
            "again, re-execute it from failure on the web page.",
            markup=False,
        )
    publish(servers["Dagster"], local)

    addresses: dict[str, str | None] = {
        "Dagster": servers["Dagster"],
        **{name: settings[each] for name, each in CALLED.items() if settings.get(each)},
        "Data lake": settings.get("LAKE_URI"),
        **({"Cloud Storage": local["STORAGE_EMULATOR_HOST"]} if local else {}),
    }
    for target in targets.values():
        addresses |= target.addresses
    show(addresses, _RELOADS)
    follow_edits(list(targets.values()), servers, addresses)


def show(addresses: Mapping[str, str | None], edits: str) -> None:
    """Print the addresses.

    Args:
        addresses: The addresses by name.
        edits: What happens after an edit.
    """
    console.print()
    width = max(15, *map(len, addresses))
    for name, address in addresses.items():
        console.print(f"{name:<{width}} {address}")
    console.print(f"{edits} Press Ctrl-C to stop.\n")


def read_settings() -> dict[str, str]:
    """The environment variables, overridden by `orchestrator/.env` as in Dagster.

    Raises:
        SettingsError: The file is meant for what is deployed, but does not name it.
    """
    file = deployed_settings()
    settings = {**os.environ, **file}
    deployed = [name for name in file if name.startswith(_NAMES_DEPLOYED) or name == "LAKE_URI"]
    if deployed and not settings.get(_NAMES_DEPLOYED):
        raise SettingsError(
            f"orchestrator/.env does not name the {KIND} to call. To call a deployed {KIND}, set "
            f"{_NAMES_DEPLOYED} there. To use the local cloud, remove {' and '.join(deployed)}."
        )
    return settings


def names_deployed(settings: Mapping[str, str]) -> bool:
    """Whether Dagster calls what is deployed, and nothing of the local cloud.

    Args:
        settings: The settings.
    """
    return bool(settings.get(_NAMES_DEPLOYED))


@contextmanager
def dagster(settings: Mapping[str, str], port: int, output: DagsterOutput) -> Iterator[str]:
    """Run `dg dev` during the block.

    Args:
        settings: Settings in addition to those in the environment and in `.env`.
        port: The port of the web page.
        output: Prints what Dagster prints.

    Yields:
        The URL of the web page.
    """
    with running(
        "Dagster",
        uv_run(settings, "dg", "dev", "--host=127.0.0.1", f"--port={port}", "--log-level=warning"),
        port=port,
        environment={
            **settings,
            "DAGSTER_EXECUTOR": "in_process",
            "PYTHONUNBUFFERED": "1",
        },
        directory=ORCHESTRATOR,
        on_line=output,
    ):
        yield f"http://127.0.0.1:{port}"


def follow_edits(
    targets: Sequence[DevTarget],
    servers: Mapping[str, str],
    addresses: Mapping[str, str | None],
) -> None:
    """Reload after each edit, until a server ends.

    Args:
        targets: What runs the tasks; nothing if Dagster calls what is deployed.
        servers: The URLs of the servers by name, including `Dagster`.
        addresses: The addresses to print after each reload.

    Raises:
        ProcessError: A server ended.
    """
    of_definitions = (ORCHESTRATOR / "src", GCP_PIPES)
    known = [folder.name for folder in task_folders()]
    edited = PythonFilter(extra_extensions=(".yaml", ".yml", ".toml", ".env"))
    for changes in watch(
        *of_definitions,
        *task_folders(),
        watch_filter=edited,
        rust_timeout=1_000,
        yield_on_timeout=True,
    ):
        for name, url in servers.items():
            if not is_listening(urlsplit(url).port or 80):
                raise ProcessError(f"{name} ended")
        paths = [Path(path) for _, path in changes]
        if targets and (new := _new_folders(known)):
            known += new
            console.print(f"New: {', '.join(new)}. Restart `just dev` to serve it.", markup=False)
        for target in targets:
            target.follow_edits(paths)
        if is_any_in(paths, of_definitions):
            reload_definitions(servers["Dagster"])
        if paths:
            show(addresses, _RELOADS)


def _new_folders(known: Sequence[str]) -> list[str]:
    return [folder.name for folder in task_folders() if folder.name not in known]


def reload_definitions(dagster_url: str) -> None:
    """Reload Dagster's definitions, and print the errors in them.

    Args:
        dagster_url: The URL of the web page, without a slash at the end.
    """
    with step("The definitions were edited: reloading"):
        try:
            errors = _errors(query_dagster(dagster_url, _RELOAD_DEFINITIONS))
        except OSError as error:
            errors = [f"Dagster does not respond: {error}"]
    for message in errors:
        console.print("[red]Dagster could not load the definitions.[/red]")
        console.print(message.strip(), markup=False)


def _errors(response: dict[str, Any]) -> list[str]:
    """The errors in the query, in the workspace, and in each code location."""
    workspace = (response.get("data") or {}).get("reloadWorkspace", {})
    locations = [entry["locationOrLoadError"] for entry in workspace.get("locationEntries", [])]
    places = [*response.get("errors", []), workspace, *locations]
    return [_root_cause(place) for place in places if place and "message" in place]


def _root_cause(error: dict[str, Any]) -> str:
    return str([error, *error.get("causes", [])][-1]["message"])


if __name__ == "__main__":
    sys.exit(main())
