"""Many calls at once, each for one partition, and all within one step.

The calls are made by threads of their own. What they bring goes into the run in the step's own
thread, as it comes. While much is waiting to be written, whoever brings more waits too: so what is
kept in memory is bounded by the calls in flight.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue

from .call import TIME_TO_CANCEL, Attempt, CloudFunctionCaller

Report = Callable[[], None]
"""Something to be done in the step's own thread."""

Call = Callable[[str, Callable[[Report], None]], Attempt]
"""Calls the function for a partition, and leaves its reports to the function that it is given."""


@dataclass(frozen=True)
class EndedCall:
    """The call for one partition, with its last attempt, or with what kept it from being made."""

    partition_key: str
    outcome: Attempt | Exception


class FanOut:
    """Makes the calls for some partitions.

    Args:
        caller: Makes the calls; it is told if they are to end.
        call: Makes one of them.
        partition_keys: The partitions, in the order in which their calls are to begin.
        max_in_flight: How many calls there are at the same time, at most.
    """

    def __init__(
        self,
        caller: CloudFunctionCaller,
        call: Call,
        partition_keys: Sequence[str],
        max_in_flight: int,
    ) -> None:
        self._caller = caller
        self._call = call
        self._lock = threading.Lock()  # guards the attribute below
        self._not_begun = iter(partition_keys)
        self._inbox: Queue[Report | EndedCall | None] = Queue(max_in_flight)
        self._threads = [
            threading.Thread(target=self._make_calls, name=f"pipes-call-{number}")
            for number in range(min(max_in_flight, len(partition_keys)))
        ]
        self._at_work = len(self._threads)
        self._step_thread = threading.current_thread()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._watch_step, name="pipes-watch")

    def ended_calls(self) -> Iterator[EndedCall]:
        """Make the calls; each is yielded when it has ended.

        If the step is interrupted meanwhile, no further call is made, the function is told to end
        those in flight, and those that then end are yielded still. If the step ends without having
        asked for all of them, the same happens, and nothing is yielded.
        """
        try:
            for thread in (*self._threads, self._watch):
                thread.start()
            yield from self._receive()
        except GeneratorExit:
            if not self._over.is_set():
                self._cancel()
            raise
        except BaseException:  # the run is being terminated
            yield from self._receive(self._cancel())
            raise
        finally:
            self._end()

    def begin_no_more(self) -> None:
        """Make no further call. Those in flight go on."""
        with self._lock:
            self._not_begun = iter(())

    def _make_calls(self) -> None:
        """What each thread does: one call after the other."""
        while (key := self._next_key()) is not None:
            outcome: Attempt | Exception
            try:
                outcome = self._call(key, self._leave)
            except Exception as error:
                outcome = error
            self._leave(EndedCall(key, outcome))
        self._leave(None)

    def _next_key(self) -> str | None:
        with self._lock:
            return next(self._not_begun, None)

    def _leave(self, item: Report | EndedCall | None) -> None:
        """Put something before the step's thread; if much is there already, wait for it."""
        while not self._over.is_set():
            try:
                self._inbox.put(item, timeout=1.0)
            except Full:
                continue
            return

    def _receive(self, give_up: float = math.inf) -> Iterator[EndedCall]:
        """Do what the threads leave to be done, until all of them have ended, or until `give_up`.

        That is a time of the monotonic clock.
        """
        while self._at_work and time.monotonic() < give_up:
            try:
                item = self._inbox.get(timeout=1.0)
            except Empty:
                continue
            if item is None:
                self._at_work -= 1
            elif isinstance(item, EndedCall):
                yield item
            else:
                item()

    def _cancel(self) -> float:
        """End the calls in flight, and make no further one; say when to wait for them no longer."""
        self.begin_no_more()
        self._caller.cancel()
        return time.monotonic() + TIME_TO_CANCEL

    def _end(self) -> None:
        """Let every thread end, even one whose call does not, and one that nobody listens to."""
        is_over = self._over.is_set()
        self._over.set()
        if self._at_work and not is_over:
            self.begin_no_more()
            self._caller.abandon()
        for thread in (*self._threads, self._watch):
            # Not one that was never started, nor one in which the garbage of the step is collected.
            if thread.ident not in (None, threading.get_ident()):
                thread.join()

    def _watch_step(self) -> None:
        """Cancel the calls if the thread of the step has ended without any end of the calls.

        That is so if a run is terminated while Dagster writes an event: it then asks for no further
        one, and the process that would end waits for these threads.
        """
        while not self._over.wait(1.0):
            if not self._step_thread.is_alive():
                give_up = self._cancel()
                self._over.set()
                for thread in self._threads:
                    thread.join(max(0.0, give_up - time.monotonic()))
                self._caller.abandon()
