"""Dagster's web page beside the local cloud, following edits: `just dd`.

An edit under `cloud_function/` starts the function anew; an edit of the definitions makes Dagster
load them anew. What is stored is kept in `.local/`.
"""

import json
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import URLError

from dotenv import dotenv_values
from watchfiles import PythonFilter, watch

from local_cloud.cloud import (
    CLOUD_FUNCTION,
    ORCHESTRATOR,
    PROJECT,
    cloud_function,
    storage_emulator,
)
from local_cloud.demo import console, prepare_environments, root_module, step
from local_cloud.processes import (
    UV,
    ProcessError,
    free_port,
    interrupted_once,
    is_free,
    running,
)

KEPT = PROJECT / ".local"
DEFINITIONS = ORCHESTRATOR / "src"
_USUAL_DAGSTER_PORT = 3000


def main() -> int:
    """Run until interrupted; return the exit status."""
    try:
        with interrupted_once(), ExitStack() as stack:
            run(stack)
    except KeyboardInterrupt:
        console.print("\nInterrupted. All that was started has been stopped.")
        return 0
    except ProcessError as error:
        console.print(f"[red]Failed:[/red] {error}. Its output is above.")
        return 1
    return 0


def run(stack: ExitStack) -> None:
    """Start everything on `stack`, then follow edits for ever."""
    prepare_environments()
    settings = {name: value for name, value in dotenv_values(ORCHESTRATOR / ".env").items() if value}
    function = None
    if "FUNCTION_URL" not in {**os.environ, **settings}:
        with step("Starting the emulated Cloud Storage"):
            storage = stack.enter_context(storage_emulator())
        function = stack.enter_context(ReloadingFunction(storage))
        settings = {**function.settings, "LAKE_URI": str(KEPT / "lake"), **settings}
    with step("Starting Dagster"):
        dagster_url = stack.enter_context(dagster(settings))
