"""Notices that the platform ends this instance, while its tasks can still tell Dagster.

Google Cloud ends an instance ten seconds after SIGTERM:
https://cloud.google.com/run/docs/container-contract#instance-shutdown
"""

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_is_ending = threading.Event()
_actions: set[Callable[[], None]] = set()  # of the tasks that are running in this process
_install = threading.Lock()  # held once the handler is requested


def is_ending() -> bool:
    """Whether this instance has received SIGTERM. A task that starts now could not finish."""
    return _is_ending.is_set()


@contextmanager
def when_ending(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` if this instance receives SIGTERM while the block runs.

    Args:
        action: The function to call, by the main thread. It must not wait.
    """
    _request_handler()
    _actions.add(action)
    try:
        if is_ending():  # it has just received it
            action()
        yield
    finally:
        _actions.discard(action)


def watch_for_the_end() -> None:
    """Let SIGTERM end the tasks of this process, and not the process. The main thread calls this.

    It is for a process that is no server, which would end at once otherwise.
    """
    signal.signal(signal.SIGTERM, lambda *_: _is_ending.set())


def _request_handler() -> None:
    """Let the main thread set the handler, which no other thread can; tasks run in others.

    Each process of the server sets a handler of its own after it has loaded the function, so this
    is called by the first task.
    """
    if _install.acquire(blocking=False):
        ctypes.pythonapi.Py_AddPendingCall(_SET_HANDLER, None)  # the main thread calls it soon


def _set_handler(_: object) -> int:
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before):  # not a server: the process ends at once
        return 0

    def end(number: int, frame: FrameType | None) -> None:
        if not is_ending():  # gunicorn repeats the signal
            _is_ending.set()
            for action in list(_actions):
                action()
        before(number, frame)

    signal.signal(signal.SIGTERM, end)
    return 0


_SET_HANDLER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(_set_handler)
