"""Runs a task, and stops it from outside: at its deadline, or when its call is cancelled."""

import contextvars
import ctypes
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType

from gcp_pipes.message_writer import PipesCloudStorageMessageWriter

_TIME_TO_STOP = 1.0  # seconds, for the exception to be raised in the task


class TaskStoppedError(BaseException):
    """A task was stopped from outside.

    It is no `Exception`: where those are caught, as Python's logging does with any that is raised
    while it writes a line, the task would go on as if nothing had happened.
    """


class TaskTimeoutError(TaskStoppedError):
    """A task was still running at its deadline, and was stopped.

    Args:
        seconds: How long it ran.
    """

    def __init__(self, seconds: float | None = None) -> None:
        duration = "" if seconds is None else f", after {seconds:.3g} s,"
        super().__init__(
            f"The task was still running at its deadline{duration} and was stopped. The deadline "
            "is the timeout of the call, or a little before that of the function. Raise both, or "
            "give the task less to do."
        )


class TaskCancelledError(TaskStoppedError):
    """The run that a task worked for was terminated, and so the task was stopped."""

    def __init__(self) -> None:
        super().__init__("Dagster has cancelled this call: its run was terminated.")


def run_task(
    task: Callable[[], None], *, seconds: float, message_writer: PipesCloudStorageMessageWriter
) -> None:
    """Run a task to its end, its deadline, or the cancellation of its call.

    A task that is to stop gets an exception, between two steps of the Python interpreter. One that
    waits for something else, such as a library or a lock, does not notice. It is left alone after a
    second, and this function raises the exception in its stead, with the stack of where the task
    is. Its thread may run on until the instance ends, but it can send no further message.

    The writer notices a cancellation when it stores the next messages.

    Args:
        task: The task. It runs in a thread of its own, with a copy of the context variables.
        seconds: How long it may run.
        message_writer: The writer of the call's messages.

    Raises:
        TaskTimeoutError: The task was still running at its deadline.
        TaskCancelledError: The call was cancelled.
        BaseException: What the task raised, with its traceback.
    """
    running = _RunningTask(task)
    message_writer.when_cancelled(lambda: running.events.put(TaskCancelledError()))
    running.start()
    try:
        reason = running.events.get(timeout=max(seconds, 0.0))
    except Empty:
        reason = TaskTimeoutError(seconds)
    if reason is not None:
        running.stop(reason)
    if running.error is not None:
        raise running.error


class _RunningTask:
    """A task in its thread.

    Attributes:
        events: What happens to it: None when it ends, or the reason for which it has to.
        error: What it raised.
    """

    def __init__(self, task: Callable[[], None]) -> None:
        self._task = task
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="task", daemon=True
        )
        self.events: SimpleQueue[TaskStoppedError | None] = SimpleQueue()
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, reason: TaskStoppedError) -> None:
        """Raise the reason in the task, or, if that does not notice, make it the task's error."""
        thread = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(type(reason)))
        self._thread.join(_TIME_TO_STOP)
        if self._thread.is_alive():
            self.error = reason.with_traceback(self._stack())
        elif isinstance(self.error, type(reason)):  # made by the interpreter, without a duration
            self.error = reason.with_traceback(self.error.__traceback__)

    def _run(self) -> None:
        try:
            try:
                self._task()
            except BaseException as error:
                self.error = error
            finally:
                self.events.put(None)
        except TaskStoppedError:  # raised when the task had ended
            pass

    def _stack(self) -> TracebackType | None:
        """Where the task is, as the traceback of an exception that it would raise there."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        traceback = None
        while frame is not None and frame.f_code is not _RunningTask._run.__code__:
            traceback = TracebackType(traceback, frame, frame.f_lasti, frame.f_lineno)
            frame = frame.f_back
        return traceback
