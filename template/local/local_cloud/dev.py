"""Dagster's web page beside the local cloud, following edits: `just dev`.

An edit of the function starts it anew; an edit of the definitions makes Dagster load them anew.
Tables and runs are kept in `.local/`. Where `FUNCTION_URL` is set, by the environment or by
`orchestrator/.env`, Dagster calls that function, and nothing but Dagster runs here.
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
# Nothing is reported to Dagster's makers, and no e-mail address is asked for.
telemetry: {enabled: false}
nux: {enabled: false}
# The daemon learns of mended definitions a moment after the web page: until then, a run waits.
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
    """Run until interrupted; return the exit status."""
    try:
        with interrupted_once(), ExitStack() as stack:
            run(stack)
    except KeyboardInterrupt:
        console.print("\nAll that was started has been stopped.")
    except ProcessError as error:
        failed(f"{error}. Its output is above.")
        return 1
    except SettingsError as error:
        failed(str(error))
        return 1
    return 0


def run(stack: ExitStack) -> None:
    """Start everything, to be stopped with `stack`, and follow edits until interrupted.

    Args:
        stack: Stops what was started, when it is closed.
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
    console.print("Edits are followed. Stop with Ctrl-C.\n")
    follow_edits(function, servers)


def read_settings() -> dict[str, str]:
    """The environment, under what `orchestrator/.env` sets: to Dagster, too, that goes first.

    Raises:
        SettingsError: The file would have the local function write to another lake than the local.
    """
    file = {name: value or "" for name, value in dotenv_values(ORCHESTRATOR / ".env").items()}
    settings = {**os.environ, **file}
    if not settings.get("FUNCTION_URL") and (file.keys() & {"FUNCTION_URL", "LAKE_URI"}):
        raise SettingsError(
            "orchestrator/.env names no function to call. Set FUNCTION_URL there to call a "
            "deployed function; or remove FUNCTION_URL and LAKE_URI, to run it all on this machine."
        )
    return settings


class ReloadingFunction:
    """The served cloud function, which can be started anew at the same URL.

    Args:
        storage: What `storage_emulator` yielded.

    Attributes:
        settings: What `cloud_function` yielded.
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
        """Serve the function as its files are now; if that fails, say so and serve nothing."""
        self._running.close()
        try:
            with step("The function was edited: starting it"):
                self._running.enter_context(cloud_function(self._storage, self._port))
        except ProcessError as error:
            console.print(f"[red]{error}[/red]. It starts again with the next edit.")


@contextmanager
def dagster(settings: Mapping[str, str]) -> Iterator[str]:
    """Run `dg dev` while the block runs.

    Args:
        settings: The orchestrator's settings, beside those in the environment and in `.env`.

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
    """Take each edit to where it belongs, for as long as all servers are there.

    Args:
        function: The local function, if it is the one to call.
        servers: The URLs of what runs beside it, `Dagster` among them, by what to call them.

    Raises:
        ProcessError: A server has ended on its own.
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
                raise ProcessError(f"{name} has ended")
        paths = [Path(path) for _, path in changes]
        if function is not None and _is_any_in(paths, of_function):
            function.reload()
        if _is_any_in(paths, of_definitions):
            reload_definitions(servers["Dagster"])


def _is_any_in(paths: Iterable[Path], folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for path in paths for folder in folders)


def reload_definitions(dagster_url: str) -> None:
    """Make Dagster load the definitions as their files are now, and say if it cannot.

    Args:
        dagster_url: The URL of the web page, without a slash at the end.
    """
    request = urllib.request.Request(
        f"{dagster_url}/graphql",
        data=json.dumps({"query": _RELOAD_DEFINITIONS}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with step("The definitions were edited: loading them"):
        try:
            with local_opener().open(request, timeout=60) as response:
                problems = _problems(json.load(response))
        except OSError as error:
            problems = [f"Dagster does not answer: {error}"]
    for problem in problems:
        console.print("[red]Dagster could not load the definitions.[/red]")
        console.print(problem.strip(), markup=False)


def _problems(answer: dict[str, Any]) -> list[str]:
    """What Dagster says is wrong with the query, the workspace, or a code location in it."""
    workspace = (answer.get("data") or {}).get("reloadWorkspace", {})
    locations = [entry["locationOrLoadError"] for entry in workspace.get("locationEntries", [])]
    places = [*answer.get("errors", []), workspace, *locations]
    return [_innermost(place) for place in places if place and "message" in place]


def _innermost(error: dict[str, Any]) -> str:
    """What an error began with, which is what is to be mended."""
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
