"""Tracks the calls in flight, and which call a log record or a printed line belongs to.

Context variables decide. Before Python 3.14, a thread that a task starts does not inherit them.
What it logs or prints belongs to the call in flight if there is exactly one, and otherwise to none:
it is then in the function's own log only.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from dagster_pipes import PipesContext

_LONGEST_PART = 8192  # characters of an incomplete line that are held back


@dataclass(eq=False)
class Call:
    """A call in flight.

    Attributes:
        pipes: The Pipes context of the call.
        forwards_output: Whether what the call prints is sent to Dagster.
        log_fields: Added to each record of the call in the function's own log.
    """

    pipes: PipesContext
    forwards_output: bool
    log_fields: dict[str, object]
    _printing: threading.Lock = field(default_factory=threading.Lock)  # guards the attribute below
    _parts: dict[tuple[str, bool], str] = field(default_factory=dict)

    def print(self, stream: str, text: str, *, natively: bool = False) -> str:
        """Send complete lines to Dagster, if the call forwards output, and return them.

        Text that Python did not print (`natively`) is not joined with text that it did.
        """
        with self._printing:
            text = self._parts.pop((stream, natively), "") + text
            lines, end, part = text.rpartition("\n")
            if len(part) > _LONGEST_PART:
                lines, end, part = text, "", ""
            if part:
                self._parts[stream, natively] = part
            if self.forwards_output and lines + end:
                self.pipes.log_external_stream(stream, lines + end)
            return lines + end

    def end_lines(self) -> Iterator[tuple[str, str]]:
        """Complete all incomplete lines. Yield those of Python, with the names of their streams."""
        for stream, natively in list(self._parts):
            line = self.print(stream, "\n", natively=natively)
            if not natively:
                yield stream, line


_current: ContextVar[Call | None] = ContextVar("_current")
_changing = threading.Lock()
_calls: tuple[Call, ...] = ()


def _reset_forked_child() -> None:
    """In a process that a task forked: it has no call, and ends on SIGTERM.

    It inherits the signal handlers of gunicorn, which would ignore SIGTERM. Then, for example,
    `multiprocessing.Pool` would wait forever for the process to end.
    """
    global _calls
    if _calls:
        _calls = ()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


os.register_at_fork(after_in_child=_reset_forked_child)


def call_in_flight() -> Call | None:
    """The call that the current log record or printed text belongs to, if known."""
    try:
        call = _current.get()
    except LookupError:
        return only_call_in_flight()
    return call if call in _calls else None  # a thread may outlive the call that started it


def only_call_in_flight() -> Call | None:
    """The call in flight, if there is exactly one."""
    calls = _calls
    return calls[0] if len(calls) == 1 else None


def is_current(call: Call) -> bool:
    """Whether the call is that of the current context variables."""
    return _current.get(None) is call


@contextmanager
def in_flight(call: Call) -> Iterator[None]:
    """Assign what the block logs and prints to the call."""
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
    """Assign what the block logs and prints to no call."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
