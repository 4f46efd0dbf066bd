"""When a task has to end: at the timeout of its call, and some time before that of the function."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from werkzeug.exceptions import BadRequest

from gcp_pipes.protocol import TIMEOUT_PARAMETER

_MARGIN = 10.0  # seconds before the function's timeout: to stop a task, and to store its messages
_AFTER_START = 5.0  # seconds, in which requests are handled that waited for the instance to start


def _start_of_process() -> float:
    """When this process was started, by the monotonic clock; on a system without /proc, now."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # since the system was booted: field 22 in proc(5)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - age
    return time.monotonic()


_started = _start_of_process()
_ready = math.inf
_handled: ContextVar[float] = ContextVar("_handled")


def function_is_ready() -> None:
    """Note that this process can handle requests from now on."""
    global _ready
    _ready = time.monotonic()


@contextmanager
def request_handled() -> Iterator[None]:
    """Note that a request is handled in the block, and since when."""
    token = _handled.set(time.monotonic())
    try:
        yield
    finally:
        _handled.reset(token)


def seconds_left(event: Mapping[str, Any], *, function_timeout: float) -> float:
    """How long the task of a call may run from now on.

    The task ends at the timeout of its call, and some time before that of the function, at which
    the response is cut off, and Dagster could not learn what happened. That time is ten seconds, or
    half of a timeout of less than twenty.

    Args:
        event: The body of the request, in which Dagster sends the timeout of the call, in seconds.
        function_timeout: The function's own timeout, in seconds.

    Raises:
        BadRequest: The timeout of the call is not a positive number.
    """
    now = time.monotonic()
    handled = _handled.get(now)
    limit = max(function_timeout - _MARGIN, function_timeout / 2)
    limit -= min(_time_before(handled), limit / 2)  # however slow the start was, some time is left
    if (timeout := event.get(TIMEOUT_PARAMETER)) is not None:
        if type(timeout) not in (int, float) or not 0 < timeout < math.inf:
            raise BadRequest(
                f"{TIMEOUT_PARAMETER} must be the call's timeout in seconds; it is {timeout!r}."
            )
        limit = min(limit, timeout)
    return limit - (now - handled)


def _time_before(handled: float) -> float:
    """Seconds between the arrival of a request, from which Google Cloud counts, and its handling.

    A request that makes Google Cloud start an instance waits until that is ready. So do those that
    come meanwhile: they are handled in its first seconds.
    """
    return handled - _started if 0 <= handled - _ready < _AFTER_START else 0.0
