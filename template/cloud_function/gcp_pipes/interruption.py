"""Ways to end a task from outside, so that Dagster learns why it ended: its time, or a word."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gcp_pipes.message_writer import PipesCloudStorageMessageWriter


class TaskStoppedError(BaseException):
    """A task was stopped from outside.

    It is no `Exception`: where those are caught, as Python's logging does with any that is raised
    while it writes a line, the task would go on as if nothing had happened.
    """


class TaskTimeoutError(TaskStoppedError):
    """A task ran until shortly before the function's timeout, and was stopped."""

    def __init__(self) -> None:
        super().__init__(
            "The task was still running shortly before the function's timeout, and was stopped. "
            "Give the function more time, or the task less to do."
        )


class TaskCancelledError(TaskStoppedError):
    """The run that a task worked for was terminated, and so the task was stopped."""

    def __init__(self) -> None:
        super().__init__("Dagster has told the function to end this call: its run was terminated.")


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise an exception in the block if it is still running after `seconds`.

    At its timeout, Google Cloud cuts off the answer and leaves nobody to say what happened.

    Args:
        seconds: How long the block may run. None sets no limit.

    Raises:
        TaskTimeoutError: The block ran for too long.
    """
    if seconds is None:
        yield
        return
    with _interruptible(TaskTimeoutError) as interrupt:
        timer = threading.Timer(seconds, interrupt)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def cancellable(message_writer: PipesCloudStorageMessageWriter) -> Iterator[None]:
    """Raise an exception in the block if Dagster has cancelled the call.

    The writer notices when it stores the next messages: a task that says nothing is not stopped.

    Args:
        message_writer: The writer of the call's messages.

    Raises:
        TaskCancelledError: The call was cancelled.
    """
    with _interruptible(TaskCancelledError) as interrupt:
        message_writer.when_cancelled(interrupt)
        yield


@contextmanager
def _interruptible(exception: type[TaskStoppedError]) -> Iterator[Callable[[], None]]:
    """Yield what raises `exception` in the block, when it is called by another thread.

    It is raised between two steps of the Python interpreter: a call into a library that is written
    in another language is not interrupted, but followed by it.
    """
    alarm = _Alarm(exception)
    try:
        yield alarm.ring
    finally:
        alarm.switch_off()


class _Alarm:
    """Raises an exception in the thread that made it, unless it has been switched off."""

    def __init__(self, exception: type[TaskStoppedError]) -> None:
        self._exception = exception
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._is_on = True
        self._has_rung = False

    def ring(self) -> None:
        with self._lock:
            if self._is_on and not self._has_rung:
                self._has_rung = True
                self._raise_in_thread(self._exception)

    def switch_off(self) -> None:
        with self._lock:
            self._is_on = False
            if self._has_rung:  # perhaps too late to have been raised: then it must not be any more
                self._raise_in_thread(None)

    def _raise_in_thread(self, exception: type[TaskStoppedError] | None) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread),
            None if exception is None else ctypes.py_object(exception),
        )
