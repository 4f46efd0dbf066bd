"""The deadline of a task: the timeout of its call, or shortly before that of the function."""

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

_MARGIN = 10.0  # seconds before the function's timeout, to stop the task and to store its messages
_AFTER_START = 5.0  # seconds in which requests may arrive that waited for the instance to start


def _start_of_process() -> float:
    """When this process started, by the monotonic clock; now, on a system without /proc."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # since boot: field 22 in proc(5)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - age
    return time.monotonic()


_started = _start_of_process()
_ready = math.inf
_handled: ContextVar[float] = ContextVar("_handled")


def function_is_ready() -> None:
    """Record that this process handles requests from now on."""
    global _ready
    _ready = time.monotonic()


@contextmanager
def request_handled() -> Iterator[None]:
    """Record when the request arrived that the block handles."""
    token = _handled.set(time.monotonic())
    try:
        yield
    finally:
        _handled.reset(token)


def seconds_left(event: Mapping[str, Any], *, function_timeout: float) -> float:
    """How long the task of a call may run from now on.

    The deadline is the timeout of the call, or ten seconds before the timeout of the function,
    which cuts off the response. Of a function's timeout under twenty seconds, it is half.

    Args:
        event: The body of the request, in which Dagster sends the timeout of the call, in seconds.
        function_timeout: The function's own timeout, in seconds.

    Raises:
        BadRequest: The timeout of the call is not a positive number.
    """
    now = time.monotonic()
    handled = _handled.get(now)
    limit = max(function_timeout - _MARGIN, function_timeout / 2)
    limit -= min(_time_before(handled), limit / 2)  # some time is left after a slow start, too
    if (timeout := event.get(TIMEOUT_PARAMETER)) is not None:
        if type(timeout) not in (int, float) or not 0 < timeout < math.inf:
            raise BadRequest(
                f"{TIMEOUT_PARAMETER} must be the call's timeout in seconds; it is {timeout!r}."
            )
        limit = min(limit, timeout)
    return limit - (now - handled)


def _time_before(handled: float) -> float:
    """Seconds that a request waited for its instance to start. Google Cloud counts them.

    The first seconds of an instance are assumed to serve requests that waited.
    """
    return handled - _started if 0 <= handled - _ready < _AFTER_START else 0.0
