"""The deadline of a task: the timeout of its call, or shortly before the function's timeout."""

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

_MARGIN = 10.0  # seconds before the function's timeout, to stop a task and store its messages
_AFTER_START = 5.0  # seconds; requests that waited for the instance to start are handled in them


def _start_of_process() -> float:
    """When this process started, by the monotonic clock. Without /proc, this is now."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # since the system booted: field 22 in proc(5)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - age
    return time.monotonic()


_process_start = _start_of_process()
_ready_since = math.inf
_request_start: ContextVar[float] = ContextVar("_request_start")


def set_ready() -> None:
    """Record that this process can handle requests from now on."""
    global _ready_since
    _ready_since = time.monotonic()


@contextmanager
def request_timer() -> Iterator[None]:
    """Record when the request that the block handles started."""
    token = _request_start.set(time.monotonic())
    try:
        yield
    finally:
        _request_start.reset(token)


def seconds_left(event: Mapping[str, Any], *, function_timeout: float = math.inf) -> float:
    """How many seconds are left until the deadline of a task.

    The deadline is the timeout of the call. It is at least ten seconds before the function's
    timeout (if that is less than 20 seconds, at half of it), since at that timeout Google Cloud
    closes the connection, and Dagster would not learn what happened.

    Args:
        event: The body of the request, in which Dagster sends the timeout of the call, in seconds.
        function_timeout: The function's own timeout, in seconds. A job has none.

    Raises:
        BadRequest: The timeout of the call is not a positive number.
    """
    now = time.monotonic()
    start = _request_start.get(now)
    limit = max(function_timeout - _MARGIN, function_timeout / 2)
    limit -= min(_waiting_time(start), limit / 2)  # keep half of it, however slow the start was
    if (timeout := event.get(TIMEOUT_PARAMETER)) is not None:
        if type(timeout) not in (int, float) or not 0 < timeout < math.inf:
            raise BadRequest(
                f"{TIMEOUT_PARAMETER} must be the call's timeout in seconds; it is {timeout!r}."
            )
        limit = min(limit, timeout)
    return limit - (now - start)


def _waiting_time(start: float) -> float:
    """How long, at most, a request waited for this instance to start: Google Cloud counts that."""
    return start - _process_start if 0 <= start - _ready_since < _AFTER_START else 0.0
