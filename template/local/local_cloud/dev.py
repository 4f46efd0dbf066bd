"""Dagster's web page and the local cloud, which reload when you edit: `just dev`.

After an edit, the function restarts, or Dagster reloads its definitions. Tables and runs are kept
in `.local/`. If `FUNCTION_URL` is set, in the environment or in `orchestrator/.env`, Dagster calls
that function, and only Dagster runs on this machine.
"""

import argparse
import json
import os
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from local_cloud.cloud import (
    CLOUD_FUNCTION,
    GCP_PIPES,
    ORCHESTRATOR,
    SettingsError,
    local_opener,
    storage_emulator,
)
from local_cloud.console import console, failed, step
from local_cloud.dagster_output import DagsterOutput
from local_cloud.debugging import FUNCTION_PORT
from local_cloud.demo import prepare_environments
from local_cloud.instance import (
    LAKE,
    choose_port,
    only_dev,
    publish,
    usual_ports,
)
from local_cloud.processes import (
    UV,
    ProcessError,
    interrupted_once,
    is_listening,
    running,
)
from local_cloud.served_function import ServedFunction
from watchfiles import PythonFilter, watch

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
    try:
        with interrupted_once(), only_dev(), ExitStack() as stack:
            run(stack, options)
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
    parser = argparse.ArgumentParser(prog="just dev", description="Start Dagster and the function.")
    parser.add_argument("--port", type=int, help="the port of Dagster's web page")
    parser.add_argument("--function-port", type=int, help="the port of the function")
    parser.add_argument(
        "--debug", action="store_true", help="let a debugger attach to the function at any time"
    )
    parser.add_argument("--debug-port", type=int, help="the port for the debugger")
    parser.add_argument(
        "--verbose", action="store_true", help="print all events and log lines of runs"
    )
    return parser.parse_args()


def run(stack: ExitStack, options: argparse.Namespace) -> None:
    """Start everything, and reload after edits until interrupted.

    Args:
        stack: Stops all processes when it is closed.
        options: The options on the command line.
    """
    settings = read_settings()
    dagster_port, function_port = usual_ports()
    dagster_port = choose_port("Dagster", "--port", options.port, dagster_port)
    prepare_environments()
    function = None
    servers = {}
    local = {}
    if not settings.get("FUNCTION_URL"):
        wanted = options.function_port
        function_port = choose_port("the function", "--function-port", wanted, function_port)
        debug_port = choose_port("the debugger", "--debug-port", options.debug_port, FUNCTION_PORT)
        with step("Starting the emulated Cloud Storage"):
            storage = stack.enter_context(storage_emulator())
        with step("Starting the cloud function"):
            served = ServedFunction(storage, function_port, debug_port, debug=options.debug)
            function = stack.enter_context(served)
        servers["The storage emulator"] = storage["STORAGE_EMULATOR_HOST"]
        local = {**storage, **function.settings, "LAKE_URI": str(LAKE)}
        settings |= local
    with step("Starting Dagster"):
        output = DagsterOutput(verbose=options.verbose)
        servers["Dagster"] = stack.enter_context(dagster(local, dagster_port, output))
    publish(servers["Dagster"], local)

    addresses: dict[str, str | None] = {
        "Dagster": servers["Dagster"],
        "Cloud function": settings["FUNCTION_URL"],
        "Data lake": settings.get("LAKE_URI"),
    }
    if function is not None and options.debug:
        addresses["Debugger"] = f"127.0.0.1:{debug_port}"
    show(addresses)
    follow_edits(function, servers, addresses)


def show(addresses: Mapping[str, str | None]) -> None:
    """Print the addresses.

    Args:
        addresses: The addresses by name.
    """
    console.print()
    for name, address in addresses.items():
        console.print(f"{name:<15} {address}")
    console.print("Reloads when you edit. Press Ctrl-C to stop.\n")


def read_settings() -> dict[str, str]:
    """The environment variables, overridden by `orchestrator/.env` as in Dagster.

    Raises:
        SettingsError: The file is meant for a deployed function, but does not name one.
    """
    file = {name: value or "" for name, value in dotenv_values(ORCHESTRATOR / ".env").items()}
    settings = {**os.environ, **file}
    if not settings.get("FUNCTION_URL") and (file.keys() & {"FUNCTION_URL", "LAKE_URI"}):
        raise SettingsError(
            "orchestrator/.env does not name the function to call. To call a deployed function, "
            "set FUNCTION_URL there. To use the local cloud, remove FUNCTION_URL and LAKE_URI."
        )
    return settings


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
        [UV, "run", "dg", "dev", "--host=127.0.0.1", f"--port={port}", "--log-level=warning"],
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
    function: ServedFunction | None,
    servers: Mapping[str, str],
    addresses: Mapping[str, str | None],
) -> None:
    """Reload after each edit, and restart the function if it ends, until another server ends.

    Args:
        function: The local function, or None if Dagster calls a deployed one.
        servers: The URLs of the other servers by name, including `Dagster`.
        addresses: The addresses to print after each reload.

    Raises:
        ProcessError: A server ended.
    """
    of_definitions = (ORCHESTRATOR / "src", GCP_PIPES)
    of_function = (CLOUD_FUNCTION, GCP_PIPES)
    edited = PythonFilter(extra_extensions=(".yaml", ".yml", ".toml"))
    for changes in watch(
        *{*of_definitions, *of_function},
        watch_filter=edited,
        rust_timeout=1_000,
        yield_on_timeout=True,
    ):
        for name, url in servers.items():
            if not is_listening(urlsplit(url).port or 80):
                raise ProcessError(f"{name} ended")
        paths = [Path(path) for _, path in changes]
        if function is not None and _is_any_in(paths, of_function):
            function.reload()
        elif function is not None:
            function.restart_if_ended()
        if _is_any_in(paths, of_definitions):
            reload_definitions(servers["Dagster"])
        if paths:
            show(addresses)


def _is_any_in(paths: Iterable[Path], folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for path in paths for folder in folders)


def reload_definitions(dagster_url: str) -> None:
    """Reload Dagster's definitions, and print the errors in them.

    Args:
        dagster_url: The URL of the web page, without a slash at the end.
    """
    request = urllib.request.Request(
        f"{dagster_url}/graphql",
        data=json.dumps({"query": _RELOAD_DEFINITIONS}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with step("The definitions were edited: reloading"):
        try:
            with local_opener().open(request, timeout=60) as response:
                errors = _errors(json.load(response))
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
