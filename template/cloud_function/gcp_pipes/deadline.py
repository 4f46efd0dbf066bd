"""A limit to how long a task may run, so that Dagster learns why it ended."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TaskTimeoutError(TimeoutError):
    """A task ran until shortly before the function's timeout, and was stopped."""

    def __init__(self) -> None:
        super().__init__(
            "The task was still running shortly before the function's timeout, and was stopped. "
            "Give the function more time, or the task less to do."
        )


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise an exception in the block if it is still running after `seconds`.

    At its timeout, Google Cloud cuts off the answer and leaves nobody to say what happened. The
    exception is raised between two steps of the Python interpreter: a call into a library that is
    written in another language is not interrupted, but followed by it.

    Args:
        seconds: How long the block may run. None sets no limit.

    Raises:
        TaskTimeoutError: The block ran for too long.
    """
    if seconds is None:
        yield
        return
    alarm = _Alarm()
    timer = threading.Timer(seconds, alarm.ring)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        alarm.switch_off()


class _Alarm:
    """Raises `TaskTimeoutError` in the thread that made it, unless it has been switched off."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._is_on = True
        self._has_rung = False

    def ring(self) -> None:
        with self._lock:
            if self._is_on:
                self._has_rung = True
                self._set_exception(TaskTimeoutError)

    def switch_off(self) -> None:
        with self._lock:
            self._is_on = False
            if self._has_rung:  # perhaps too late to have been raised: then it must not be any more
                self._set_exception(None)

    def _set_exception(self, exception: type[Exception] | None) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread),
            None if exception is None else ctypes.py_object(exception),
        )
