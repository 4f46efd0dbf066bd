"""Which call a log record, or a printed line, belongs to.

Context variables decide. A thread that a task starts has none of its task's (before Python 3.14):
what it logs or prints belongs to the call in flight, if there is exactly one. Where there are more,
it belongs to none, and is in the function's own log only.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from dagster_pipes import PipesContext

_LONGEST_PART = 8192  # characters that wait for the end of their line


@dataclass(eq=False)
class Call:
    """A call that is in flight.

    Attributes:
        pipes: The Pipes context of the call.
        forwards_output: Whether Dagster takes what the call prints.
        log_fields: What the function's own log says of each record of the call.
    """

    pipes: PipesContext
    forwards_output: bool
    log_fields: dict[str, object]
    _printing: threading.Lock = field(default_factory=threading.Lock)  # guards the attribute below
    _parts: dict[tuple[str, bool], str] = field(default_factory=dict)

    def print(self, stream: str, text: str, *, natively: bool = False) -> str:
        """Take what was printed. Complete lines go to the compute logs of the run, if it takes any.

        Args:
            stream: `stdout` or `stderr`.
            text: What was printed.
            natively: Whether it was not printed by Python. Such lines are never joined with others.

        Returns:
            The lines that are complete now.
        """
        with self._printing:
            begun = self._parts.pop((stream, natively), "")
            lines, end, part = (begun + text).rpartition("\n")
            if len(part) > _LONGEST_PART:
                lines, end, part = lines + end + part, "", ""
            if part:
                self._parts[stream, natively] = part
            if self.forwards_output and lines + end:
                self.pipes.log_external_stream(stream, lines + end)
            return lines + end

    def end_lines(self) -> Iterator[tuple[str, str]]:
        """Complete each line that was begun; yield those of Python, with the name of the stream."""
        for stream, natively in list(self._parts):
            line = self.print(stream, "\n", natively=natively)
            if not natively:
                yield stream, line


_current: ContextVar[Call | None] = ContextVar("_current")
_changing = threading.Lock()
_calls: tuple[Call, ...] = ()


def _leave_calls_to_parent() -> None:
    """In a child process that a task has forked: it has no call of its own, and ends on SIGTERM.

    It inherits the signal handlers of gunicorn, which would ignore SIGTERM. Then
    `multiprocessing.Pool`, for one, would wait for its end for ever.
    """
    global _calls
    if _calls:
        _calls = ()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


os.register_at_fork(after_in_child=_leave_calls_to_parent)


def call_in_flight() -> Call | None:
    """The call that what is logged or printed here and now belongs to, if that is known."""
    try:
        call = _current.get()
    except LookupError:
        return only_call_in_flight()
    return call if call in _calls else None  # a thread may outlive the call that started it


def only_call_in_flight() -> Call | None:
    """The call that is in flight, if there is exactly one."""
    calls = _calls
    return calls[0] if len(calls) == 1 else None


def is_in_flight_here(call: Call) -> bool:
    """Whether this thread works for the call, by its context variables.

    Args:
        call: The call.
    """
    return _current.get(None) is call


@contextmanager
def in_flight(call: Call) -> Iterator[None]:
    """Let what is logged or printed in the block belong to the call.

    Args:
        call: The call.
    """
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
    """Let what is logged or printed in the block belong to no call."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
