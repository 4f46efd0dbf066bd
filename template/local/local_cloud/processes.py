"""Starts processes, and stops them with everything that they started."""

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

_START_TIMEOUT = 120.0  # seconds
_STOP_TIMEOUT = 5.0  # seconds
_INTERRUPT_TIMEOUT = 10.0  # seconds
_MOST_INTERRUPTS = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

UV = os.environ.get("UV", "uv")  # `uv run` sets it to its own path


class ProcessError(Exception):
    """A process did not start, or ended unexpectedly.

    Args:
        message: What happened, without a period at the end.
        status: The exit status of the process, if it ended.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def inherited_environment() -> dict[str, str]:
    """The environment variables that programs get from this process.

    Without that of its virtual environment: uv would warn that theirs is another one.
    """
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}


def free_port() -> int:
    """A free TCP port on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def local_opener() -> urllib.request.OpenerDirector:
    """An opener for URLs of this machine, which ignores proxies."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_free(port: int) -> bool:
    """True if no process listens on a TCP port of 127.0.0.1.

    Args:
        port: The port.
    """
    with socket.socket() as probe:
        # Without it, a port counts as taken for a minute after its last connection.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def is_listening(port: int) -> bool:
    """True if a process listens on a TCP port of 127.0.0.1.

    Args:
        port: The port.
    """
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    port: int | None,
    environment: Mapping[str, str],
    directory: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server, wait until it listens on `port`, and stop it after the block.

    Args:
        name: The name of the server in errors.
        command: The program and its arguments.
        port: The port on 127.0.0.1 that the server listens on; None if it listens on none.
        environment: Variables in addition to those of this process.
        directory: The working directory.
        on_line: Called in another thread with each line of the server's output, without its end.
            By default, the output is that of this process.

    Yields:
        The process.

    Raises:
        ProcessError: The server ended or timed out before it listened.
    """
    output = subprocess.PIPE if on_line else None
    with _process(command, environment, directory, output) as process:
        if on_line:
            threading.Thread(target=_read_lines, args=(process, on_line), daemon=True).start()
        if port is not None:
            _wait_until_listening(name, process, port)
        yield process


def _read_lines(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
    assert process.stdout is not None  # noqa: S101
    for line in process.stdout:
        on_line(line.decode(errors="replace").rstrip("\r\n"))


def run_to_end(
    name: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    output: IO[str] | None = None,
    interrupt: bool = False,
) -> None:
    """Run a program until it ends.

    Args:
        name: The name of the program in errors.
        command: The program and its arguments.
        environment: Variables in addition to those of this process.
        directory: The working directory.
        output: The file for its output. The default is the output of this process.
        interrupt: To stop the program early, interrupt it first, as Ctrl-C does: pytest then stops
            the servers that the tests started.

    Raises:
        ProcessError: The program ended with a status other than 0.
    """
    with _process(command, environment, directory, output) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            if interrupt:
                _interrupt(process)
            raise
    if status:
        raise ProcessError(f"{name} ended with status {status}", status)


@contextmanager
def _process(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path | None,
    output: IO[str] | int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, and stop it after the block."""
    process = None
    try:
        with _signals_delayed():
            process = subprocess.Popen(
                command,
                cwd=directory,
                env={**inherited_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,  # a process group of its own, to be stopped as a whole
            )
        yield process
    finally:
        if process is not None:
            _stop(process)


@contextmanager
def _signals_delayed() -> Iterator[None]:
    """Delay signals until the end of the block.

    Otherwise a signal during the start of a process could leave it running, unknown to this one.
    """
    if threading.current_thread() is not threading.main_thread():  # only it receives signals
        yield
        return
    arrived: list[int] = []
    with _signals_handled_by(lambda number, _: arrived.append(number)):
        yield
    for number in arrived:
        signal.raise_signal(number)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal to end, and ignore all that follow.

    Further signals then cannot interrupt the code that stops the processes.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _signals_handled_by(interrupt):
        yield


@contextmanager
def _signals_handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle all signals to end with `handler` during the block."""
    previous = {number: signal.signal(number, handler) for number in _SIGNALS}
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


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the process and its group, and wait until it has ended.

    Dagster may handle an interrupt itself: then only its run ends, and pytest goes on.
    """
    for _ in range(_MOST_INTERRUPTS):
        _signal_group(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_INTERRUPT_TIMEOUT)
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the process and everything that it started: terminate, then kill."""
    _signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # No process of the group is left: Linux raises the first error, macOS the second.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
