"""Dagster as in production, on this machine: `just prod`.

The instance is the one of production, in `orchestrator/production/`. The web server, the daemon
and the code location are processes of their own; one that ends is started again. The database is a
PostgreSQL in `.local/`, unless `DAGSTER_POSTGRES_URL` names yours. Nothing reloads after an edit.
"""

import argparse
import functools
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Self

from local_cloud import postgres
from local_cloud.cloud import cloud_targets, create_bucket
from local_cloud.console import console, step
from local_cloud.credentials import uv_run
from local_cloud.dagster_api import cancel_interrupted_runs
from local_cloud.dagster_output import DagsterOutput
from local_cloud.demo import prepare
from local_cloud.dev import names_deployed, read_settings, show, until_interrupted
from local_cloud.instance import LOCAL, choose_port, kept_storage, usual_ports
from local_cloud.processes import free_port, run_to_end, running
from local_cloud.project import ORCHESTRATOR, root_module, setting, task_folders
from local_cloud.targets import CALLED

_HOME = LOCAL / "prod"
_PRODUCTION = ORCHESTRATOR / "production"
_URL, _LOGS = "DAGSTER_POSTGRES_URL", "DAGSTER_LOGS_BUCKET"
_ENVIRONMENT = {"UV_PROJECT_ENVIRONMENT": str(_HOME / "venv")}  # besides the one to develop in
_UV_RUN = {**_ENVIRONMENT, "UV_NO_SYNC": "1"}
_LOCATION_NAME = "--location-name=orchestrator"  # as in workspace.yaml
_INTERVAL = 1.0  # seconds between two looks at the processes


def main() -> int:
    """Run until interrupted, and return the exit status."""
    parser = argparse.ArgumentParser(prog="just prod", description="Dagster as in production.")
    parser.add_argument("--port", type=int, help="the port of Dagster's web page")
    parser.add_argument(
        "--verbose", action="store_true", help="print all events and log lines of runs"
    )
    options = parser.parse_args()
    return until_interrupted(lambda stack: run(stack, options))


def run(stack: ExitStack, options: argparse.Namespace) -> None:
    """Start everything, and start again what ends, until interrupted.

    Args:
        stack: Stops all processes when it is closed.
        options: The options on the command line.

    Raises:
        ProcessError: A process did not start.
        SettingsError: A setting is missing.
    """
    settings = read_settings()
    port = choose_port("Dagster", "--port", options.port, next(usual_ports()))
    prepare_environments()
    local: dict[str, str] = {}
    if not names_deployed(settings):
        with step("Starting the local cloud"):
            storage = stack.enter_context(kept_storage())
            create_bucket(storage["STORAGE_EMULATOR_HOST"], setting(_LOGS))
            local = {**storage, **stack.enter_context(cloud_targets(storage))}
    has_own_database = not settings.get(_URL)
    if has_own_database:
        with step("Starting PostgreSQL"):
            local[_URL] = stack.enter_context(database())
    shutil.copy(_PRODUCTION / "dagster.yaml", _HOME)
    started = time.time()
    with step("Starting Dagster"):
        environment = {_LOGS: setting(_LOGS), **local, "DAGSTER_HOME": str(_HOME)}
        output = DagsterOutput(verbose=options.verbose)
        services = start_dagster(
            stack, environment, port, output, has_own_database=has_own_database
        )
    url = f"http://127.0.0.1:{port}"
    # Those in a database of yours may be in progress elsewhere.
    for run_id in cancel_interrupted_runs(url, started) if has_own_database else ():
        console.print(f"run {run_id[:8]} was interrupted, and is now canceled.", markup=False)
    called = {name: {**settings, **local}.get(each) for name, each in CALLED.items()}
    show({"Dagster": url, **called}, "Restart it after edits.")
    keep_running(services)


def prepare_environments() -> None:
    """Install the dependencies of the tasks, and those of Dagster in production."""
    for folder in task_folders():
        prepare(folder)
    groups = ("--no-default-groups", "--group=local-production")
    prepare(ORCHESTRATOR, *groups, environment=_ENVIRONMENT)


@contextmanager
def database() -> Iterator[str]:
    """Run a PostgreSQL of this project's own during the block, and yield its URL."""
    port = free_port()
    command = uv_run({}, "python", "-m", "local_cloud.postgres", str(_HOME), str(port))
    with running("PostgreSQL", command, port=port, environment=_UV_RUN, directory=ORCHESTRATOR):
        yield postgres.url(_HOME, port)


class Service:
    """A process of Dagster's, which is started again when it ends.

    Args:
        name: Its name.
        command: The program and its arguments.
        port: The port that it listens on; None if it does not listen.
        environment: Its environment variables.
        output: Prints what it prints.
        after_restart: What runs when it serves again: a program and its arguments, which are
            followed by the time of the start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int | None,
        environment: Mapping[str, str],
        output: DagsterOutput,
        after_restart: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._environment = environment
        self._after_restart = after_restart
        self._start = functools.partial(
            running,
            name,
            uv_run(environment, *command),
            port=port,
            environment={**environment, **_UV_RUN},
            directory=ORCHESTRATOR,
            on_line=output,
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start it."""
        self._process = self._stack.enter_context(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and the runs that it has started."""
        self._stack.close()

    def restart_if_ended(self) -> None:
        """Start it again if it has ended."""
        status = self._process.poll()
        if status is None:
            return
        console.print(f"{self.name} has ended with status {status}. Starting it again.")
        self._stack.close()
        started = datetime.now(UTC).isoformat()
        self._process = self._stack.enter_context(self._start())
        if self._after_restart:
            run_to_end(
                f"What follows the start of {self.name}",
                uv_run(self._environment, *self._after_restart, started),
                environment={**self._environment, **_UV_RUN},
                directory=ORCHESTRATOR,
            )


def start_dagster(
    stack: ExitStack,
    settings: Mapping[str, str],
    web_port: int,
    output: DagsterOutput,
    *,
    has_own_database: bool,
) -> list[Service]:
    """Start the code location, the web server and the daemon, as containers do in production.

    Args:
        stack: Stops them when it is closed.
        settings: The environment variables that they need, besides those in `.env`.
        web_port: The port of the web page.
        output: Prints what they print.
        has_own_database: Whether all runs in progress are of this Dagster.
    """
    code_port = free_port()
    environment = {
        **settings,
        "CODE_LOCATION_HOST": "127.0.0.1",
        "CODE_LOCATION_PORT": str(code_port),
    }
    host, quiet = "--host=127.0.0.1", "--log-level=warning"
    workspace = f"--workspace={_PRODUCTION / 'workspace.yaml'}"
    module = f"--module-name={root_module()}.definitions"
    code = ("dagster", "api", "grpc", host, f"--port={code_port}", module, _LOCATION_NAME, quiet)
    web = ("dagster-webserver", host, f"--port={web_port}", workspace, quiet)
    daemon = ("dagster-daemon", "run", workspace, quiet)
    # Only with a database of its own: in yours, runs may be in progress elsewhere.
    interrupted = ("python", str(_PRODUCTION / "fail_interrupted_runs.py"))
    return [
        stack.enter_context(Service(name, command, port, environment, output, after_restart))
        for name, command, port, after_restart in (
            ("The code location", code, code_port, interrupted if has_own_database else ()),
            ("The web server", web, web_port, ()),
            ("The daemon", daemon, None, ()),
        )
    ]


def keep_running(services: Sequence[Service]) -> None:
    """Start each process again that ends, until interrupted.

    Args:
        services: What has started.

    Raises:
        ProcessError: One did not start again.
    """
    while True:
        for service in services:
            service.restart_if_ended()
        time.sleep(_INTERVAL)


if __name__ == "__main__":
    sys.exit(main())
