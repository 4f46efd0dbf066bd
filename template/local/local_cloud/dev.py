"""Dagster's web page and the local cloud, which reload when you edit: `just dev`.

After an edit, the function restarts, or Dagster reloads its definitions. Tables and runs are kept
in `.local/`. If `FUNCTION_URL` is set, in the environment or in `orchestrator/.env`, Dagster calls
that function, and only Dagster runs on this machine.
"""

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
    PROJECT,
    SettingsError,
    cloud_function,
    local_opener,
    storage_emulator,
)
from local_cloud.demo import console, failed, prepare_environments, step
from local_cloud.processes import (
    UV,
    ProcessError,
    free_port,
    interrupted_once,
    is_listening,
    running,
)
from watchfiles import PythonFilter, watch

_KEPT = PROJECT / ".local"
_CONFIGURATION = """\
# No telemetry, and no prompt for an e-mail address.
telemetry: {enabled: false}
nux: {enabled: false}
# After an edit, the daemon loads the definitions later than the web page. Runs wait for it.
run_queue: {max_user_code_failure_retries: 15, user_code_failure_retry_delay: 2}
"""
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
    try:
        with interrupted_once(), ExitStack() as stack:
            run(stack)
    except KeyboardInterrupt:
        console.print("\nAll processes are stopped.")
    except ProcessError as error:
        failed(f"{error}. Its output is above.")
        return 1
    except SettingsError as error:
        failed(str(error))
        return 1
    return 0


def run(stack: ExitStack) -> None:
    """Start everything, and reload after edits until interrupted.

    Args:
        stack: Stops all processes when it is closed.
    """
    settings = read_settings()
    prepare_environments()
    function = None
    servers = {}
    local = {}
    if not settings.get("FUNCTION_URL"):
        with step("Starting the emulated Cloud Storage"):
            storage = stack.enter_context(storage_emulator())
        with step("Starting the cloud function"):
            function = stack.enter_context(ReloadingFunction(storage))
        servers["The storage emulator"] = storage["STORAGE_EMULATOR_HOST"]
        local = {**storage, **function.settings, "LAKE_URI": str(_KEPT / "lake")}
        settings |= local
    with step("Starting Dagster"):
        servers["Dagster"] = stack.enter_context(dagster(local))

    console.print(f"\nDagster         {servers['Dagster']}")
    console.print(f"Cloud function  {settings['FUNCTION_URL']}")
    console.print(f"Data lake       {settings.get('LAKE_URI')}")
    console.print("Reloads when you edit. Press Ctrl-C to stop.\n")
    follow_edits(function, servers)


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


class ReloadingFunction:
    """The served cloud function, which can restart at the same URL.

    Args:
        storage: The variables that `storage_emulator` yielded.

    Attributes:
        settings: The variables that `cloud_function` yielded.
    """

    def __init__(self, storage: Mapping[str, str]) -> None:
        self._storage = storage
        self._port = free_port()
        self._running = ExitStack()
        self.settings: dict[str, str] = {}

    def __enter__(self) -> "ReloadingFunction":
        """Start the function."""
        self.settings = self._running.enter_context(cloud_function(self._storage, self._port))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the function."""
        self._running.close()

    def reload(self) -> None:
        """Restart the function with its edited files; if that fails, print why."""
        self._running.close()
        try:
            with step("The function was edited: restarting"):
                self._running.enter_context(cloud_function(self._storage, self._port))
        except ProcessError as error:
            console.print(f"[red]{error}[/red]. Edit it again to restart it.")


@contextmanager
def dagster(settings: Mapping[str, str]) -> Iterator[str]:
    """Run `dg dev` during the block.

    Args:
        settings: Settings in addition to those in the environment and in `.env`.

    Yields:
        The URL of the web page.
    """
    port = free_port()
    with running(
        "Dagster",
        [UV, "run", "dg", "dev", "--host=127.0.0.1", f"--port={port}", "--log-level=warning"],
        port=port,
        environment={**settings, "DAGSTER_HOME": str(_dagster_home())},
        directory=ORCHESTRATOR,
    ):
        yield f"http://127.0.0.1:{port}"


def follow_edits(function: ReloadingFunction | None, servers: Mapping[str, str]) -> None:
    """Reload after each edit, until a server ends.

    Args:
        function: The local function, or None if Dagster calls a deployed one.
        servers: The URLs of the other servers by name, including `Dagster`.

    Raises:
        ProcessError: A server ended.
    """
    of_definitions = (ORCHESTRATOR / "src", GCP_PIPES)
    of_function = (CLOUD_FUNCTION, GCP_PIPES)
    edited = PythonFilter(extra_extensions=(".yaml", ".yml", ".toml"))
    for changes in watch(
        *{*of_definitions, *of_function},
        watch_filter=edited,
        rust_timeout=2_000,
        yield_on_timeout=True,
    ):
        for name, url in servers.items():
            if not is_listening(urlsplit(url).port or 80):
                raise ProcessError(f"{name} ended")
        paths = [Path(path) for _, path in changes]
        if function is not None and _is_any_in(paths, of_function):
            function.reload()
        if _is_any_in(paths, of_definitions):
            reload_definitions(servers["Dagster"])


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


def _dagster_home() -> Path:
    home = _KEPT / "dagster_home"
    home.mkdir(parents=True, exist_ok=True)
    configuration = home / "dagster.yaml"
    if not configuration.exists():
        configuration.write_text(_CONFIGURATION)
    return home


if __name__ == "__main__":
    sys.exit(main())
