"""Which call a log record, or a printed line, belongs to.

Context variables tell the calls apart. A thread that a task starts does not inherit them (before
Python 3.14). What it logs or prints belongs to the call in flight if there is exactly one.
Otherwise it is only in the function's own log.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from dagster_pipes import PipesContext

_LONGEST_PART = 8192  # characters of an incomplete line that are kept


@dataclass(eq=False)
class Call:
    """A call that is in flight.

    Attributes:
        pipes: The Pipes context of the call.
        forwards_output: Whether what the call prints is sent to Dagster.
        log_fields: The fields of each of the call's records in the function's own log.
    """

    pipes: PipesContext
    forwards_output: bool
    log_fields: dict[str, object]
    _printing: threading.Lock = field(default_factory=threading.Lock)  # guards the attribute below
    _parts: dict[tuple[str, bool], str] = field(default_factory=dict)

    def print(self, stream: str, text: str, *, natively: bool = False) -> str:
        """Add printed text, send complete lines to Dagster, and return them."""
        with self._printing:
            previous = self._parts.pop((stream, natively), "")
            lines, end, part = (previous + text).rpartition("\n")
            if len(part) > _LONGEST_PART:
                lines, end, part = lines + end + part, "", ""
            if part:
                self._parts[stream, natively] = part
            if self.forwards_output and lines + end:
                self.pipes.log_external_stream(stream, lines + end)
            return lines + end

    def end_lines(self) -> Iterator[tuple[str, str]]:
        """Complete each incomplete line; yield those that Python printed, with the stream."""
        for stream, natively in list(self._parts):
            line = self.print(stream, "\n", natively=natively)
            if not natively:
                yield stream, line


_current: ContextVar[Call | None] = ContextVar("_current")
_changing = threading.Lock()
_calls: tuple[Call, ...] = ()


def _reset_in_child() -> None:
    """In a process that a task forks: no call is in flight, and signals have default handlers.

    With the inherited handlers of gunicorn, the process would ignore SIGTERM, and
    `multiprocessing.Pool` would wait for it forever.
    """
    global _calls
    if _calls:
        _calls = ()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


os.register_at_fork(after_in_child=_reset_in_child)


def call_in_flight() -> Call | None:
    """The call that the current code belongs to, if that is known."""
    try:
        call = _current.get()
    except LookupError:
        return only_call_in_flight()
    return call if call in _calls else None  # a thread may outlive its call


def only_call_in_flight() -> Call | None:
    """The call in flight, if there is exactly one."""
    calls = _calls
    return calls[0] if len(calls) == 1 else None


def is_in_flight_here(call: Call) -> bool:
    """Whether this thread runs the call, by its context variables."""
    return _current.get(None) is call


@contextmanager
def in_flight(call: Call) -> Iterator[None]:
    """Make what the block logs and prints belong to the call."""
    global _calls
    with _changing:
        _calls = (*_calls, call)
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
        with _changing:
            _calls = tuple(each for each in _calls if each is not call)


@contextmanager
def not_forwarded() -> Iterator[None]:
    """Make what the block logs and prints belong to no call."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
