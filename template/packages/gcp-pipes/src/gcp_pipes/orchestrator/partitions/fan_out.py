"""Many calls in flight at the same time, each for one partition, within one step.

Threads make the calls. The step's own thread writes their reports to the run. While it is behind,
the threads wait: so memory is bounded by the number of calls in flight.
"""

import atexit
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue

from gcp_pipes.orchestrator.call import Attempt
from gcp_pipes.telemetry import export_spans

Report = Callable[[], None]
"""Something to do in the step's own thread."""

Call = Callable[[str, Callable[[Report], None]], Attempt]
"""Makes the call for a partition; the second argument takes reports."""


@dataclass(frozen=True)
class FinishedCall:
    """The call for one partition, with its last attempt, or with the error that prevented it."""

    partition_key: str
    outcome: Attempt | Exception


class FanOut:
    """Makes the calls for some partitions.

    The threads are daemons: a process whose step was interrupted does not wait for a response.
    """

    def __init__(
        self,
        call: Call,
        partition_keys: Sequence[str],
        *,
        cancel: Callable[[], float],
        max_in_flight: int,
    ) -> None:
        self._call = call
        self._cancel_calls = cancel
        self._lock = threading.Lock()  # guards the attribute below
        self._not_started = iter(partition_keys)
        self._queue: Queue[Report | FinishedCall | None] = Queue(max_in_flight)
        self._threads = [
            threading.Thread(target=self._make_calls, name=f"pipes-call-{number}", daemon=True)
            for number in range(min(max_in_flight, len(partition_keys)))
        ]
        self._running = len(self._threads)
        self._is_over = threading.Event()

    def finished_calls(self) -> Iterator[FinishedCall]:
        """Make the calls, and yield each when it has finished.

        If the step is interrupted, no further call is made, those in flight are cancelled, and
        those that then finish are still yielded. If the step stops iterating, or its process ends,
        the same happens, and nothing is yielded.
        """
        atexit.register(self._cancel)  # a run can be terminated while Dagster writes an event
        try:
            for thread in self._threads:
                thread.start()
            yield from self._receive()
        except GeneratorExit:
            if self._running:
                self._cancel()
            raise
        except BaseException:  # the run is being terminated
            yield from self._receive(deadline=self._cancel())
            raise
        finally:
            atexit.unregister(self._cancel)
            self.stop_submitting()
            self._is_over.set()
            export_spans()

    def stop_submitting(self) -> None:
        """Make no further call. Those in flight continue."""
        with self._lock:
            self._not_started = iter(())

    def _make_calls(self) -> None:
        """What each thread does: one call after the other."""
        while (key := self._next_key()) is not None:
            outcome: Attempt | Exception
            try:
                outcome = self._call(key, self._enqueue)
            except Exception as error:
                outcome = error
            self._enqueue(FinishedCall(key, outcome))
        self._enqueue(None)

    def _next_key(self) -> str | None:
        with self._lock:
            return next(self._not_started, None)

    def _enqueue(self, item: Report | FinishedCall | None) -> None:
        """Hand something to the step's thread; wait while its queue is full."""
        while not self._is_over.is_set():
            try:
                self._queue.put(item, timeout=1.0)
            except Full:
                continue
            return

    def _receive(self, deadline: float = math.inf) -> Iterator[FinishedCall]:
        """Do what is in the queue, until all threads have ended or the deadline has passed."""
        while self._running and time.monotonic() < deadline:
            try:
                item = self._queue.get(timeout=1.0)
            except Empty:
                continue
            if item is None:
                self._running -= 1
            elif isinstance(item, FinishedCall):
                yield item
            else:
                item()

    def _cancel(self) -> float:
        """Cancel the calls in flight, and make no further one; return until when to wait."""
        self.stop_submitting()
        return self._cancel_calls() + time.monotonic()
