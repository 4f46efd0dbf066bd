"""One call that runs as several tasks at the same time, and has the results of all of them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import dagster as dg

from gcp_pipes.orchestrator.call import Attempt
from gcp_pipes.orchestrator.context import StepContext
from gcp_pipes.orchestrator.messages import CallMessageHandler
from gcp_pipes.orchestrator.outcome import find_call_problem
from gcp_pipes.orchestrator.partitions.fan_out import Call, FanOut


class _AllTasks(CallMessageHandler):
    """What the messages of all tasks say together. It handles none itself."""

    def __init__(self, context: StepContext, tasks: Sequence[CallMessageHandler]) -> None:
        super().__init__(context, tasks[0].message_reader, max_log_lines=0)
        self._tasks = tasks
        self.params = tasks[0].params
        self.opened_extras = tasks[0].opened_extras
        self.has_closed = all(each.has_closed for each in tasks)
        self.message_count = sum(each.message_count for each in tasks)
        self.chunk_count = sum(each.chunk_count for each in tasks)
        self.observations = [observation for each in tasks for observation in each.observations]

    def get_reported_results(self) -> Sequence[Any]:
        """What the tasks reported, in their order."""
        return [result for each in self._tasks for result in each.get_reported_results()]

    def get_custom_messages(self) -> Sequence[Any]:
        """The custom messages of the tasks, in their order."""
        return [message for each in self._tasks for message in each.get_custom_messages()]


def run_tasks(
    context: StepContext,
    call: Call,
    *,
    count: int,
    expect: Callable[[int], None],
    cancel: Callable[[], float],
    no_messages_hint: str,
) -> Attempt:
    """Make a call for each task, all at the same time.

    Args:
        context: The context of the asset or op.
        call: Makes the call for one task, by its index as text.
        count: How many tasks there are.
        expect: Learns how many calls are made at the same time.
        cancel: Cancels the calls in flight; returns how many seconds to wait for them.
        no_messages_hint: What to check if a task sent no message.

    Returns:
        The calls as one, with the problem of each task that failed or reported what another one
        has reported, too.

    Raises:
        Exception: A call could not be made.
    """
    expect(count)
    indices = [str(index) for index in range(count)]
    fan_out = FanOut(call, indices, cancel=cancel, max_in_flight=count)
    finished = {each.partition_key: each.outcome for each in fan_out.finished_calls()}
    attempts: list[Attempt] = []
    for outcome in map(finished.__getitem__, indices):
        if isinstance(outcome, Exception):
            raise outcome
        if outcome.handler.is_wrong_version:  # so are all others, which have the same code
            return outcome
        attempts.append(outcome)
    handler = _AllTasks(context, [each.handler for each in attempts])
    for index, attempt in enumerate(attempts):
        if problem := find_call_problem(attempt, no_messages_hint):
            handler.rejected.append(f"Task {index}: {problem}")
    if not handler.rejected:
        handler.rejected += _reported_twice(attempts)
    last = max(attempts, key=lambda each: each.seconds)
    session = dataclasses.replace(attempts[0].session, message_handler=handler)
    return dataclasses.replace(last, session=session, handler=handler)


def _reported_twice(attempts: Sequence[Attempt]) -> Iterable[str]:
    """What several tasks have reported, although it can have one result only."""
    seen: dict[str, int] = {}
    for index, attempt in enumerate(attempts):
        for result in attempt.handler.get_reported_results():
            name = _name(result)
            first = seen.setdefault(name, index)
            if first != index:
                yield (
                    f"Task {index} reported {name}, as task {first} did. Report it in one of them, "
                    'such as that with `pipes.extras["task_index"] == 0`.'
                )


def _name(result: dg.MaterializeResult[Any] | dg.AssetCheckResult) -> str:
    assert result.asset_key is not None  # noqa: S101  # no task can report without it
    name = result.asset_key.to_user_string()
    if isinstance(result, dg.AssetCheckResult):
        return f"the check {result.check_name} of {name}"
    return name
