"""Stops a task from outside: at its deadline, when Dagster cancels its call, or with its instance.

A call runs in one instance of the function, and the request that cancels it reaches any instance.
What all instances share is the messages bucket, in which they may only create objects. So the
instance that receives the request creates the call's next chunk of messages and its next two
heartbeats. The instance that runs the task finds that one of them exists when it stores its own,
and stops the task.
"""

import contextvars
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any

from google.api_core.exceptions import PreconditionFailed
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from werkzeug.exceptions import BadRequest, Conflict

from gcp_pipes.external.message_writer import PipesCloudStorageMessageWriter, warning_chunk
from gcp_pipes.external.shutdown import when_ending
from gcp_pipes.external.storage import create_object
from gcp_pipes.protocol import CANCEL_PARAMETER, chunk_name, heartbeat_name

_MOST_OBJECTS = 100  # that a call may have stored, and Dagster has not read yet
_MOST_REQUESTS = 20  # that cancel calls, at the same time
_TIMEOUT = 10.0  # seconds to wait for a response from Cloud Storage
_TIME_TO_UNLOCK = 0.5  # seconds, for the task to leave code that holds locks
_LOCKING = {"gcp_pipes", "logging", "queue", "threading"}  # packages of such code
_TIME_TO_STOP = 1.0  # seconds, for the exception to be raised in the task
_TIME_TO_FINISH = 3.0  # seconds, of the ten between SIGTERM and the end of the instance


class TaskStoppedError(BaseException):
    """A task was stopped from outside.

    It is no `Exception`, since code may catch every `Exception` and continue, as Python's logging
    does while it writes a line.
    """


class TaskTimeoutError(TaskStoppedError):
    """A task was still running at its deadline, and was stopped.

    Args:
        seconds: How long it ran.
    """

    def __init__(self, seconds: float | None = None) -> None:
        duration = "" if seconds is None else f" after {seconds:.3g} s"
        super().__init__(
            f"The task timed out{duration} and was stopped. Its deadline is the timeout of the "
            "call, or shortly before the timeout of the function. Raise both, or give the task "
            "less to do."
        )


class TaskCancelledError(TaskStoppedError):
    """A task was stopped, since its run was terminated."""

    def __init__(self) -> None:
        super().__init__("Dagster cancelled this call: its run was terminated.")


class TaskInterruptedError(TaskStoppedError):
    """A task was stopped, since its instance is ending."""

    def __init__(self) -> None:
        super().__init__(
            "The task was interrupted: its instance of the function received SIGTERM and is "
            "ending. The task may have done part of its work. To call the function again then, "
            "give the asset a RetryPolicy."
        )


def is_cancellation(event: Mapping[str, Any]) -> bool:
    """Whether a request cancels calls, and is no call itself.

    Args:
        event: The body of the request: a JSON object.
    """
    return CANCEL_PARAMETER in event


def cancel_calls(event: Mapping[str, Any], bucket: storage.Bucket) -> None:
    """Cancel the calls in a request, whichever instances run them.

    Args:
        event: The body of the request, with a list of calls. Each has the `bucket` and the
            `key_prefix` of its messages, the number of the `next_chunk` that Dagster expects, and,
            for a call with heartbeats, that of the `next_heartbeat`.
        bucket: The messages bucket.

    Raises:
        BadRequest: The list contains something else. Nothing was cancelled.
        Conflict: A call could not be cancelled. All others were, also with the errors below.
        google.api_core.exceptions.GoogleAPICallError: Cloud Storage rejected a request.
        google.api_core.exceptions.RetryError: It failed until the time limit.
    """
    calls = event[CANCEL_PARAMETER]
    for call in calls:
        _check_call(call, bucket)
    with ThreadPoolExecutor(_MOST_REQUESTS) as executor:
        cancelling = [executor.submit(_cancel_call, call, bucket) for call in calls]
    for each in cancelling:
        each.result()


def _check_call(call: object, bucket: storage.Bucket) -> None:
    match call:
        case {"bucket": bucket.name, "key_prefix": str(), "next_chunk": int(), **others} if (
            isinstance(others.get("next_heartbeat", 1), int)
        ):
            pass
        case _:
            raise BadRequest(f"{call!r:.200} is not a call with messages in gs://{bucket.name}.")


def _cancel_call(call: Mapping[str, Any], bucket: storage.Bucket) -> None:
    key_prefix = call["key_prefix"]
    _create_next(bucket, partial(chunk_name, key_prefix), call["next_chunk"])
    if heartbeat := call.get("next_heartbeat"):
        # Two, since the call may take one of them for its own, in an upload that has failed.
        number = _create_next(bucket, partial(heartbeat_name, key_prefix), heartbeat)
        _create_next(bucket, partial(heartbeat_name, key_prefix), number + 1)


def _create_next(bucket: storage.Bucket, name: Callable[[int], str], expected: int) -> int:
    """Create the next object of a call, so that the call finds that its name is taken.

    Returns:
        The number of the object.
    """
    create = DEFAULT_RETRY.with_timeout(_TIMEOUT)(create_object)
    text = warning_chunk("The function received a request to cancel this call")
    for number in range(expected, expected + _MOST_OBJECTS):
        try:
            create(bucket.blob(name(number)), text, timeout=_TIMEOUT)
        except PreconditionFailed:  # the call has stored more than Dagster has read
            continue
        return number
    raise Conflict(
        f"gs://{bucket.name}/{name(expected)} and the {_MOST_OBJECTS - 1} objects after it exist: "
        "the call stores faster than it can be cancelled."
    )


def run_task(
    task: Callable[[], None], *, seconds: float, message_writer: PipesCloudStorageMessageWriter
) -> None:
    """Run a task until it ends, its deadline passes, or its call is cancelled.

    To stop the task, an exception is raised in its thread, between two steps of the Python
    interpreter. A task that waits for something else, such as a library or a lock, does not notice.
    After a second, this function then raises the exception itself, with the stack of the task. The
    thread may run until the instance ends, but can send no further message.

    The writer notices a cancellation when it stores the next messages, or the next heartbeat.

    Args:
        task: The task. It runs in its own thread, with a copy of the context variables.
        seconds: How long it may run.
        message_writer: The writer of the call's messages.

    Raises:
        TaskTimeoutError: The task was still running at its deadline.
        TaskCancelledError: The call was cancelled.
        TaskInterruptedError: The instance is ending.
        BaseException: What the task raised, with its traceback.
    """
    running = _RunningTask(task)
    message_writer.when_cancelled(lambda: running.events.put(TaskCancelledError()))
    with when_ending(lambda: running.events.put(TaskInterruptedError())):
        running.start()
        reason = running.wait(seconds)
    if reason is not None:
        running.stop(reason)
    if running.error is not None:
        raise running.error


class _RunningTask:
    """A task in its thread.

    Attributes:
        events: None when the task has ended, or the reason why it has to stop.
        error: What the task raised.
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

    def wait(self, seconds: float) -> TaskStoppedError | None:
        """Wait until the task has ended; return why it has to stop, or None."""
        try:
            reason = self.events.get(timeout=max(seconds, 0.0))
        except Empty:
            return TaskTimeoutError(seconds)
        if isinstance(reason, TaskInterruptedError):
            with suppress(Empty):
                return self.events.get(timeout=_TIME_TO_FINISH)
        return reason

    def stop(self, reason: TaskStoppedError) -> None:
        """Raise the reason in the task. If the task does not notice, make it the task's error."""
        self._wait_while_locking()
        thread = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(type(reason)))
        self._thread.join(_TIME_TO_STOP)
        if self._thread.is_alive():
            self.error = reason.with_traceback(self._stack())
        elif isinstance(self.error, type(reason)):  # created by the interpreter, without `seconds`
            self.error = reason.with_traceback(self.error.__traceback__)

    def _run(self) -> None:
        try:
            try:
                self._task()
            except BaseException as error:
                self.error = error
            finally:
                self.events.put(None)
        except TaskStoppedError:  # raised after the task had ended
            pass

    def _wait_while_locking(self) -> None:
        """Wait while the task runs code that holds locks, such as `Condition.__enter__`.

        An exception that is raised there may leave a lock locked. After each pause this thread has
        the interpreter for some milliseconds, so the task is still where it was found when the
        exception is raised.
        """
        deadline = time.monotonic() + _TIME_TO_UNLOCK
        while time.monotonic() < deadline:
            time.sleep(0.001)
            modules = (str(frame.f_globals.get("__name__")) for frame in self._frames())
            if _LOCKING.isdisjoint(module.partition(".")[0] for module in modules):
                return

    def _stack(self) -> TracebackType | None:
        """Where the task is, as the traceback of an exception that it would raise there."""
        traceback = None
        for frame in self._frames():
            traceback = TracebackType(traceback, frame, frame.f_lasti, frame.f_lineno)
        return traceback

    def _frames(self) -> Iterator[FrameType]:
        """Where the task is, the innermost frame first."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        while frame is not None and frame.f_code is not _RunningTask._run.__code__:
            yield frame
            frame = frame.f_back
