"""Dagster's web page and the local cloud, which reload when you edit: `just dev`.

After an edit, its function restarts, or Dagster reloads its definitions. Tables and runs are kept
in `.local/`. If `FUNCTION_URL` is set, in the environment or in `orchestrator/.env`, Dagster calls
that function, and only Dagster runs on this machine.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    cloud_functions,
    function_folders,
    url_variable,
)
from local_cloud.console import console, failed, step
from local_cloud.credentials import uv_run
from local_cloud.dagster_api import cancel_interrupted_runs, query_dagster
from local_cloud.dagster_output import DagsterOutput
from local_cloud.debugging import FUNCTION_PORT, FURTHER_FUNCTIONS_PORT
from local_cloud.demo import prepare_environments
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
from local_cloud.served_function import ServedFunction
from local_cloud.targets import TARGETS
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
    functions: list[ServedFunction] = []
    servers = {}
    local = {}
    if not settings.get("FUNCTION_URL"):
        ports = choose_function_ports(options, usual)
        with step("Starting the emulated Cloud Storage"):
            storage = stack.enter_context(kept_storage(options.lake))
        with step("Starting the cloud function"):
            for folder, (port, debug_port) in ports.items():
                served = ServedFunction(folder, storage, port, debug_port, debug=options.debug)
                functions.append(stack.enter_context(served))
        servers["The storage emulator"] = storage["STORAGE_EMULATOR_HOST"]
        if "GOOGLE_BASE_URL" in storage:
            servers["The data lake"] = storage["GOOGLE_BASE_URL"]
        local = {**storage}
        for function in functions:
            local |= function.settings
        for target, start in TARGETS.items():
            if start is not cloud_functions:
                with step(f"Starting {target}"):
                    local |= stack.enter_context(start(storage))
        settings |= local
    started = time.time()
    with step("Starting Dagster"):
        output = DagsterOutput(verbose=options.verbose)
        servers["Dagster"] = stack.enter_context(dagster(local, dagster_port, output))
    try:
        interrupted = cancel_interrupted_runs(servers["Dagster"], started)
    except OSError as error:
        raise ProcessError(f"Dagster does not respond: {error}") from error
    for run_id in interrupted:
        console.print(
            f"run {run_id[:8]} was interrupted when Dagster ended, and is now canceled. To run it "
            "again, re-execute it from failure on the web page.",
            markup=False,
        )
    publish(servers["Dagster"], local)

    addresses: dict[str, str | None] = {
        "Dagster": servers["Dagster"],
        "Cloud function": settings["FUNCTION_URL"],
        "Data lake": settings.get("LAKE_URI"),
        **({"Cloud Storage": local["STORAGE_EMULATOR_HOST"]} if local else {}),
    }
    for function in functions:
        name = "" if function.folder == CLOUD_FUNCTION else f" {function.folder.name}"
        if name:
            addresses[f"Function{name}"] = local[url_variable(function.folder)]
        if options.debug:
            addresses[f"Debugger{name}"] = f"127.0.0.1:{function.debug_port}"
    show(addresses)
    follow_edits(functions, servers, addresses)


def choose_function_ports(
    options: argparse.Namespace, usual: Iterator[int]
) -> dict[Path, tuple[int, int]]:
    """The port of each function, and the port for its debugger.

    Args:
        options: The options on the command line, which are for `cloud_function/`.
        usual: The ports that the functions have if they are free.

    Raises:
        SettingsError: Another process listens on a port that the user wants.
    """
    port = choose_port("the function", "--function-port", options.function_port, next(usual))
    debug = choose_port("the debugger", "--debug-port", options.debug_port, FUNCTION_PORT)
    ports = {CLOUD_FUNCTION: (port, debug)}
    for number, folder in enumerate(function_folders()[1:]):
        name = f"the function {folder.name}"
        port = choose_port(name, "--function-port", None, next(usual))
        debug = choose_port(
            f"the debugger of {folder.name}", "--debug-port", None, FURTHER_FUNCTIONS_PORT + number
        )
        ports[folder] = (port, debug)
    return ports


def show(addresses: Mapping[str, str | None]) -> None:
    """Print the addresses.

    Args:
        addresses: The addresses by name.
    """
    console.print()
    width = max(15, *map(len, addresses))
    for name, address in addresses.items():
        console.print(f"{name:<{width}} {address}")
    console.print("Reloads when you edit. Press Ctrl-C to stop.\n")


def read_settings() -> dict[str, str]:
    """The environment variables, overridden by `orchestrator/.env` as in Dagster.

    Raises:
        SettingsError: The file is meant for a deployed function, but does not name one.
    """
    file = {name: value or "" for name, value in dotenv_values(ORCHESTRATOR / ".env").items()}
    settings = {**os.environ, **file}
    deployed = [name for name in file if name.startswith("FUNCTION_URL") or name == "LAKE_URI"]
    if not settings.get("FUNCTION_URL") and deployed:
        raise SettingsError(
            "orchestrator/.env does not name the function to call. To call a deployed function, "
            f"set FUNCTION_URL there. To use the local cloud, remove {' and '.join(deployed)}."
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
    functions: Sequence[ServedFunction],
    servers: Mapping[str, str],
    addresses: Mapping[str, str | None],
) -> None:
    """Reload after each edit, and restart a function if it ends, until another server ends.

    Args:
        functions: The local functions; none if Dagster calls deployed ones.
        servers: The URLs of the other servers by name, including `Dagster`.
        addresses: The addresses to print after each reload.

    Raises:
        ProcessError: A server ended.
    """
    of_definitions = (ORCHESTRATOR / "src", GCP_PIPES)
    known = [folder.name for folder in function_folders()]
    edited = PythonFilter(extra_extensions=(".yaml", ".yml", ".toml", ".env"))
    for changes in watch(
        *of_definitions,
        *function_folders(),
        watch_filter=edited,
        rust_timeout=1_000,
        yield_on_timeout=True,
    ):
        for name, url in servers.items():
            if not is_listening(urlsplit(url).port or 80):
                raise ProcessError(f"{name} ended")
        paths = [Path(path) for _, path in changes]
        if functions and (new := _new_functions(known)):
            known += new
            console.print(f"New: {', '.join(new)}. Restart `just dev` to serve it.", markup=False)
        for function in functions:
            if _is_any_in(paths, (function.folder, GCP_PIPES)):
                function.reload()
            else:
                function.restart_if_ended()
        if _is_any_in(paths, of_definitions):
            reload_definitions(servers["Dagster"])
        if paths:
            show(addresses)


def _new_functions(known: Sequence[str]) -> list[str]:
    return [folder.name for folder in function_folders() if folder.name not in known]


def _is_any_in(paths: Iterable[Path], folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for path in paths for folder in folders)


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
