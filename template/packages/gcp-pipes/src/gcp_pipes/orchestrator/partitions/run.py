"""Makes a call for each partition of a step, and yields the events of each."""

import traceback
from collections.abc import Callable, Iterator

from gcp_pipes.orchestrator.call import Attempt
from gcp_pipes.orchestrator.context import StepContext
from gcp_pipes.orchestrator.launcher import PipesCallError
from gcp_pipes.orchestrator.outcome import is_unreachable, reason
from gcp_pipes.orchestrator.partitions.fan_out import Call, FanOut, FinishedCall
from gcp_pipes.orchestrator.partitions.results import PartitionEvent, PartitionResults
from gcp_pipes.orchestrator.partitions.resumption import missing_partitions
from gcp_pipes.orchestrator.results import CompletedCall

Complete = Callable[[Attempt], CompletedCall]
"""Returns what the task reported in a call, or raises the error that the call failed with."""


def run_partitions(
    context: StepContext,
    call: Call,
    *,
    expect: Callable[[int], None],
    cancel: Callable[[], float],
    complete: Complete,
    max_in_flight: int,
    error: type[PipesCallError],
) -> Iterator[PartitionEvent]:
    """Make a call for each partition that is not materialized yet, and yield the events.

    Args:
        context: The context of the assets.
        call: Makes the call for one partition.
        expect: Learns how many calls are made at the same time.
        cancel: Cancels the calls in flight; returns how many seconds to wait for them.
        complete: Returns what the task reported in a call.
        max_in_flight: How many calls are in flight at the same time, at most.
        error: The class of the error if partitions failed.

    Raises:
        PipesCallError: Partitions failed.
    """
    keys = missing_partitions(context)
    results = PartitionResults(context, keys)
    expect(min(max_in_flight, len(keys)))
    fan_out = FanOut(call, keys, cancel=cancel, max_in_flight=max_in_flight)
    may_retry = True
    for finished in fan_out.finished_calls():
        yield from _events(finished, results, complete)
        if isinstance(finished.outcome, Attempt) and is_unreachable(finished.outcome):
            fan_out.stop_submitting()
            may_retry &= not finished.outcome.handler.is_wrong_version
    yield from results.conclude()
    if results.problem:
        raise error(results.problem, metadata=results.metadata, allow_retries=may_retry)


def _events(
    finished: FinishedCall, results: PartitionResults, complete: Complete
) -> Iterator[PartitionEvent]:
    """The events of a partition, or none if its call failed."""
    key, outcome = finished.partition_key, finished.outcome
    if isinstance(outcome, PipesCallError):  # the event could not be sent
        results.fail(key, str(outcome), str(outcome))
        return
    if isinstance(outcome, Exception):
        summary = f"The call could not be made: {outcome!r}"
        text = "".join([summary, "\n\n", *traceback.format_exception(outcome)])
        results.fail(key, text, summary)
        return
    try:
        reported = complete(outcome).get_results()
    except PipesCallError as error:
        results.fail(key, str(error), reason(outcome, str(error)))
        return
    yield from results.succeed(key, reported, outcome.handler.observations)
