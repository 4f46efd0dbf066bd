"""Captures what a task prints to standard output and standard error.

`sys.stdout` and `sys.stderr` are replaced by streams that find the call of each text by context
variables. Native libraries and child processes write to the file descriptors instead. These are
redirected to `tee.py`, a process that copies the output to its original place and back to this
process. The copies do not show which call they belong to: with several in flight, such output is in
the function's own log only.
"""

import codecs
import ctypes
import io
import json
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from dagster_pipes import DagsterPipesError

from gcp_pipes.external.in_flight import call_in_flight, only_call_in_flight
from gcp_pipes.external.tee import END_OF_ROUND, HEADER

_NAMES = {1: "stdout", 2: "stderr"}
_TIME_TO_COPY = 2.0  # seconds, at most
_LIBC = ctypes.CDLL(None)

_logger = logging.getLogger(__name__)


class _TaskStream(io.TextIOBase):
    """Replaces standard output or standard error."""

    def __init__(self, name: str, original: TextIO, to_console: Callable[[str, str], None]) -> None:
        super().__init__()
        self._name = name
        self._to_console = to_console
        self.original = original
        self.reset_console()

    def reset_console(self) -> None:
        """Write text that belongs to no call to the original stream."""
        self._console = self.original
        self._writing = threading.RLock()  # keeps the order of lines while the console changes

    def redirect_console(self, descriptor: int) -> None:
        """Write text that belongs to no call to a file descriptor."""
        with self._writing:
            self._console.flush()
            self._console = os.fdopen(
                descriptor, "w", encoding=self.encoding, errors=self.errors, closefd=False
            )

    def write_to_console(self, text: str) -> None:
        """Write text that belongs to no call."""
        with self._writing:
            self._console.write(text)
            self._console.flush()

    def write(self, text: str) -> int:
        if call := call_in_flight():
            if lines := call.print(self._name, text):
                self._to_console(self._name, lines)
        else:
            self.write_to_console(text)
        return len(text)

    def flush(self) -> None:
        with self._writing:
            self._console.flush()

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.original, attribute)

    # The base class defines these, so __getattr__ is not called for them.

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.original.errors

    def fileno(self) -> int:
        return self.original.fileno()

    def isatty(self) -> bool:
        return self.original.isatty()

    def writable(self) -> bool:
        return True


_streams: dict[str, _TaskStream] = {}
_capturing = threading.Lock()  # guards the attribute below
_tee: "_Tee | None" = None


def replace_streams(to_console: Callable[[str, str], None]) -> None:
    """Replace the streams. `to_console` receives the name of a stream, and lines of a call."""
    for name in _NAMES.values():
        stream = getattr(sys, name)
        if not isinstance(stream, _TaskStream):
            _streams[name] = _TaskStream(name, stream, to_console)
            setattr(sys, name, _streams[name])


def write_to_console(name: str, text: str) -> None:
    """Write to the function's own log: to its `stdout` or `stderr`."""
    if name in _streams:
        _streams[name].write_to_console(text)
    else:
        print(text, end="", file=getattr(sys, name), flush=True)


def _reset_forked_child() -> None:
    """In a forked process, print to the file descriptors, which the parent captures."""
    for stream in _streams.values():
        stream.reset_console()


os.register_at_fork(after_in_child=_reset_forked_child)


def capture_descriptors() -> None:
    """Capture what is written to the file descriptors, also by child processes, from now on."""
    global _tee
    with _capturing:
        if _tee is None:
            try:
                _tee = _Tee()
            except OSError as error:
                _logger.warning(
                    f"The output of native libraries is not forwarded to Dagster: {error}"
                )


def drain_descriptors() -> None:
    """Wait until all output that the call in flight wrote to the file descriptors is captured."""
    if _tee is not None and only_call_in_flight():
        _tee.drain()


class _Tee:
    """The process `tee.py`, and the pipes to it and from it.

    It runs until this process ends, since child processes inherit the pipes and may outlive a call.
    """

    def __init__(self) -> None:
        self._received = threading.Condition()
        self._consoles = {number: os.dup(number) for number in _NAMES}
        pipes = {number: os.pipe() for number in _NAMES}
        self._sources = [pipes[number][0] for number in _NAMES]
        self._under_way, under_way = os.pipe()
        self._copies, copies = os.pipe()
        sources = [(pipes[number][0], self._consoles[number], number) for number in _NAMES]
        program = [sys.executable, "-IS", str(Path(__file__).with_name("tee.py"))]
        self._process = subprocess.Popen(  # noqa: S603  # a file of this package
            [*program, json.dumps([sources, under_way, copies])],
            stdin=subprocess.DEVNULL,
            pass_fds=[*self._sources, *self._consoles.values(), under_way, copies],
        )
        os.close(under_way)
        os.close(copies)
        for number, name in _NAMES.items():
            _streams[name].redirect_console(self._consoles[number])
            os.dup2(pipes[number][1], number)
            os.close(pipes[number][1])
        self._pipes = {number: os.fstat(number) for number in _NAMES}
        self._not_received = select.poll()  # pipes with output, or with news of it
        for descriptor in (*self._sources, self._under_way):
            self._not_received.register(descriptor, select.POLLIN)
        threading.Thread(target=self._receive, name="pipes-output", daemon=True).start()

    def drain(self) -> None:
        """Wait until all output written so far was received."""
        _LIBC.fflush(None)  # the buffers of C libraries
        for stream in _streams.values():
            with suppress(OSError):
                stream.original.flush()
        with self._received:
            self._received.wait_for(self._is_all_received, _TIME_TO_COPY)

    def _is_all_received(self) -> bool:
        # Sources first: `tee.py` fills the pipe `under_way` before it reads them.
        return not any(events & select.POLLIN for _, events in self._not_received.poll(0))

    def _receive(self) -> None:
        """Receive the copies until the pipe is closed."""
        new_decoder = codecs.getincrementaldecoder("utf-8")
        decoders = {number: new_decoder(errors="replace") for number in _NAMES}
        with os.fdopen(self._copies, "rb") as copies:
            while header := copies.read(HEADER.size):
                if header == END_OF_ROUND:
                    with self._received:
                        os.read(self._under_way, 1)
                        self._received.notify_all()
                    continue
                number, size = HEADER.unpack(header)
                text = decoders[number].decode(copies.read(size))
                call = only_call_in_flight()
                if call and call.forwards_output:
                    with suppress(DagsterPipesError):
                        call.print(_NAMES[number], text, natively=True)
        # The process was killed, or both descriptors were redirected elsewhere, as pytest does.
        for number, descriptor in self._consoles.items():
            if os.path.samestat(os.fstat(number), self._pipes[number]):
                os.dup2(descriptor, number)
        with self._received:
            self._not_received = select.poll()
            self._received.notify_all()
        for descriptor in (*self._sources, self._under_way):
            os.close(descriptor)
