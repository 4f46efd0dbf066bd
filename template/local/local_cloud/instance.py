"""What the recipes share: the buckets, Dagster's instance, and the `just dev` that runs on them."""

import fcntl
import itertools
import json
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

from local_cloud.cloud import cloud_storage
from local_cloud.console import console
from local_cloud.processes import free_port, is_free
from local_cloud.project import PROJECT, SettingsError

LOCAL = PROJECT / ".local"
_BUCKETS = LOCAL / "buckets"
_BUCKETS_LOCK = LOCAL / "buckets.lock"
_LOCK = LOCAL / "dev.lock"
_STATE = LOCAL / "dev.json"

_PATIENCE = 600.0  # seconds to wait for another command
_INTERVAL = 0.2  # seconds

# Below the ports that systems choose for outgoing connections.
_PORTS = range(20_000, 32_000, 20)


def usual_ports() -> Iterator[int]:
    """The ports of Dagster's web page, and of what else listens: the same at each start."""
    return itertools.count(_PORTS[zlib.crc32(str(PROJECT).encode()) % len(_PORTS)])


def choose_port(name: str, option: str, wanted: int | None, usual: int) -> int:
    """The port to listen on: the one that the user wants, the usual one, or any free one.

    Args:
        name: What listens on it.
        option: The option that sets it.
        wanted: The value of the option, or None.
        usual: The port without the option.

    Raises:
        SettingsError: Another process listens on the port that the user wants.
    """
    if wanted is not None:
        if not is_free(wanted):
            raise SettingsError(
                f"Port {wanted} is in use by another process. Stop it, or choose another port with "
                f"{option}."
            )
        return wanted
    if is_free(usual):
        return usual
    port = free_port()
    console.print(
        f"Port {usual}, the usual one of {name}, is in use by another process. Using {port}."
    )
    return port


@contextmanager
def only_dev() -> Iterator[None]:
    """Make sure that no other `just dev` of this project runs during the block.

    Raises:
        SettingsError: Another one runs.
    """
    LOCAL.mkdir(exist_ok=True)
    with _LOCK.open("w") as lock:
        if not _acquire(lock, patience=1):  # other recipes hold it for a moment
            published = _published()
            address = published["dagster"] if published else "starting"
            raise SettingsError(
                f"`just dev` of this project is running already: {address}. Use that one, or stop "
                "it first."
            )
        _STATE.unlink(missing_ok=True)
        try:
            yield
        finally:
            _STATE.unlink(missing_ok=True)


@contextmanager
def kept_storage(lake: str | None = None) -> Iterator[dict[str, str]]:
    """Run the storage of this machine, with the tables of earlier commands, during the block.

    Args:
        lake: The folder for the data lake, if it is not to be in a bucket.

    Yields:
        The environment variables that programs need to use the storage.

    Raises:
        SettingsError: Another command has used the storage for too long.
    """
    LOCAL.mkdir(exist_ok=True)
    with _BUCKETS_LOCK.open("w") as lock:
        if not _acquire(lock):
            console.print("Waits for another command that uses the local cloud of this project.")
            if not _acquire(lock, patience=_PATIENCE):
                raise SettingsError(
                    "Another command has used the local cloud of this project for "
                    f"{_PATIENCE / 60:.0f} minutes. Stop it first."
                )
        with cloud_storage(_BUCKETS, PROJECT / lake if lake else None) as settings:
            yield settings


def publish(dagster_url: str, settings: Mapping[str, str]) -> None:
    """Let other recipes find this `just dev`.

    Args:
        dagster_url: The URL of Dagster's web page.
        settings: The environment variables that Dagster needs to use the local cloud.
    """
    new = _STATE.with_suffix(".new")
    new.write_text(json.dumps({"dagster": dagster_url, "settings": dict(settings)}))
    new.replace(_STATE)  # at once, since other recipes may read it


def running_dev() -> dict[str, Any] | None:
    """What the running `just dev` has published; None if none is running.

    If it is starting, this waits until it has started.
    """
    deadline = time.monotonic() + _PATIENCE
    while _LOCK.exists() and time.monotonic() < deadline:
        with _LOCK.open() as lock:
            if _acquire(lock, fcntl.LOCK_SH):
                return None
        if published := _published():
            return published
        time.sleep(_INTERVAL)
    return None


def _published() -> dict[str, Any] | None:
    """What a `just dev` has published; None if it is starting, or has just ended."""
    with suppress(FileNotFoundError):
        published: dict[str, Any] = json.loads(_STATE.read_text())
        return published
    return None


def _acquire(lock: IO[str], kind: int = fcntl.LOCK_EX, patience: float = 0) -> bool:
    """Lock a file until it is closed. The system releases it if the process is killed.

    Args:
        lock: The file.
        kind: Whether others may also lock it, in the same way.
        patience: How long to wait, in seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_INTERVAL)
        else:
            return True
