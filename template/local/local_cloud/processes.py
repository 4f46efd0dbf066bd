"""Starts processes and makes sure that they end."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

_START_TIMEOUT = 120.0  # seconds
_STOP_TIMEOUT = 5.0  # seconds
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

UV = os.environ.get("UV", "uv")  # `uv run` tells its children which uv it is


class ProcessError(Exception):
    """A process did not start, or ended on its own."""


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    """Whether something listens on a TCP port of this machine.

    Args:
        port: The port on 127.0.0.1.
    """
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    environment: Mapping[str, str],
    directory: Path | None = None,
) -> Iterator[None]:
    """Run a server while the block runs, from when it listens on `port`.

    Args:
        name: What to call the server in an error.
        command: The program and its arguments.
        port: The port on 127.0.0.1 that the server will listen on.
        environment: Variables to set beside those of this process.
        directory: Where to run it.

    Raises:
        ProcessError: The server ended, or was silent for too long, before it listened.
    """
    with _process(command, environment, directory) as process:
        _wait_until_listening(name, process, port)
        yield


def run_to_end(
    name: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    output: IO[str] | None = None,
) -> None:
    """Run a program until it ends.

    Args:
        name: What to call the program in an error.
        command: The program and its arguments.
        environment: Variables to set beside those of this process.
        directory: Where to run it.
        output: Where its output goes; where that of this process goes if None.

    Raises:
        ProcessError: The program ended with another status than 0.
    """
    with _process(command, environment, directory, output) as process:
        if status := process.wait():
            raise ProcessError(f"{name} ended with status {status}")


@contextmanager
def _process(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path | None,
    output: IO[str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the block runs, at the most."""
    inherited = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    process = None
    try:
        with _uninterrupted():
            process = subprocess.Popen(
                command,
                cwd=directory,
                env={**inherited, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a process group of its own, to be stopped as a whole
            )
        yield process
    finally:
        if process is not None:
            _stop(process)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put an interruption off until the end of the block.

    A process whose start it interrupts runs, but nobody knows of it, to stop it.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal comes to others
        yield
        return
    arrived: list[int] = []
    with _interruptions_go_to(lambda number, _: arrived.append(number)):
        yield
    for number in arrived:
        signal.raise_signal(number)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Let the first Ctrl-C, or request to end, interrupt the block, and ignore any further one.

    What is to be stopped is then stopped, however often and by whichever way one is asked to.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in _INTERRUPTIONS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _interruptions_go_to(interrupt):
        yield


@contextmanager
def _interruptions_go_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have all interruptions of the block handled by `handler`."""
    previous = {number: signal.signal(number, handler) for number in _INTERRUPTIONS}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def _wait_until_listening(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ProcessError(f"{name} ended with status {process.returncode} before it was ready")
        if is_listening(port):
            return
        time.sleep(0.05)
    raise ProcessError(f"{name} was not ready after {_START_TIMEOUT:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started: politely at first."""
    _signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # Nobody is left to be signalled: Linux says so by the first error, macOS by the second.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
