"""Remembers the calls of a step in Dagster's event log, for the case that its process crashes.

All calls of one execution of a step store their messages under a common key prefix. An engine event
says which, before the first call; another one says so before each retry of a call. The key prefix
of a call is made from the common one, from what is called, and from the number of the attempt. So
if the process crashes and Dagster executes the step again, the calls that were made are found, also
those for a thousand partitions, and are followed instead of made again (`call.py`). If one that is
followed has failed or died, an engine event says so, too: no further execution follows it.

A step that failed for another reason, such as a call that failed, is executed from scratch.

Dagster has `dagster/_core/pipes/reattach.py` for such handles. It is private, and does not fit: it
finds only the latest handle of a step, but a step may have many calls; and it also finds those of
a step that failed.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster_pipes import PipesContextData, PipesParams

from gcp_pipes.orchestrator.context import StepContext
from gcp_pipes.orchestrator.dagster_internals import (
    engine_event_metadata,
    error_classes,
    is_called_directly,
    may_resume_runs,
    report_engine_event,
    start_count,
)

_CALLS = "gcp_pipes/calls"  # in the metadata of the engine events
_FROM_FAILURE = {"dagster/is_resume_retry", "dagster/is_asset_resume_retry"}  # tags of runs
_MOST_PARENTS = 100  # runs, each re-executed from the one before
_CRASHES = {  # the errors that Dagster records for a step whose process has ended
    "ChildProcessCrashException",
    "DagsterExecutionInterruptedError",
    "KeyboardInterrupt",
}
_EVENT_TYPES = {
    dg.DagsterEventType.ENGINE_EVENT,
    dg.DagsterEventType.STEP_START,
    dg.DagsterEventType.STEP_RESTARTED,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.STEP_UP_FOR_RETRY,
}
_IDENTITY = (  # what says in the Pipes context which work a call does, and not in which run
    "asset_keys",
    "code_version_by_asset_key",
    "partition_key",
    "partition_key_range",
)
_OF_RUN = {"run_tags", "upstream_data_versions"}  # the extras that may differ between runs


@dataclass
class _Execution:
    """An execution of the step, and where its calls store their messages."""

    run_id: str
    params: PipesParams
    recorded: float = 0.0  # the time of its first engine event
    attempts: dict[str, int] = field(default_factory=dict)  # of the calls that were retried
    over: set[str] = field(default_factory=set)  # key prefixes of attempts that have failed or died

    def params_of(self, name: str, attempt: int) -> PipesParams:
        """Where the messages of an attempt of a call are."""
        return {**self.params, "key_prefix": f"{self.params['key_prefix']}/{name}/{attempt}"}

    def followable(self, name: str) -> Iterator[tuple[int, PipesParams]]:
        """The attempts of a call that are not known to have failed or died."""
        for attempt in range(1, self.attempts.get(name, 1) + 1):
            params = self.params_of(name, attempt)
            if params["key_prefix"] not in self.over:
                yield attempt, params


class StepCalls:
    """The calls of one execution of a step, and those of earlier ones that have crashed.

    Args:
        context: The context of the step.
        params: What the message reader sends, with a new key prefix.
        target: What is called, such as a URL, for the event log.
        timeout: The timeout of a call in seconds, for the event log.
    """

    def __init__(
        self, context: StepContext, params: PipesParams, *, target: str, timeout: float
    ) -> None:
        self._instance = context.instance
        self._run = context.run
        self._step_key = _step_key(context)
        self._execution = _Execution(context.run_id, params)
        self._crashed = _crashed_executions(context)
        crashed_here = [each for each in self._crashed if each.run_id == context.run_id]
        self.logged = _logged_lines(context, crashed_here[0].recorded) if crashed_here else None
        self._lock = threading.Lock()  # guards the attribute below
        self._counts: Counter[str] = Counter()
        place = f"gs://{params.get('bucket')}/{params['key_prefix']}/"
        self._report(
            f"Calls of {target} store their messages in {place}",
            {},
            {
                "prefix": dg.MetadataValue.text(place),
                "target": dg.MetadataValue.text(target),
                "timeout (s)": dg.MetadataValue.float(float(timeout)),
                "attempt": dg.MetadataValue.int(context.retry_number + 1),
            },
        )

    def next_call(self, identity: str) -> "CallHandle":
        """The handle of a call that is about to be made.

        Args:
            identity: What is called, from `call_identity`. Calls that are the same are counted.
        """
        with self._lock:
            self._counts[identity] += 1
            count = self._counts[identity]
        return CallHandle(self, identity if count == 1 else f"{identity}-{count}")

    def params_of(self, name: str, attempt: int) -> PipesParams:
        """Where the messages of an attempt of a call of this execution are."""
        return self._execution.params_of(name, attempt)

    def crashed(self, name: str) -> Iterator[tuple[int, PipesParams]]:
        """The attempts of the same call in earlier executions that have crashed, the latest last.

        For each, its number, and where its messages are. Those that are known to have failed or
        died are left out.
        """
        for execution in self._crashed:
            yield from execution.followable(name)

    def report_retry(self, name: str, attempt: int) -> None:
        """Say in the event log that a call is retried."""
        text = f"Attempt {attempt} of the call {name}"
        self._report(text, {"call": name, "attempt": attempt}, {})

    def report_over(self, params: PipesParams) -> None:
        """Say in the event log that an attempt of an earlier execution has failed or died."""
        key_prefix = params["key_prefix"]
        self._report(f"The call with the messages {key_prefix} is over", {"over": key_prefix}, {})

    def _report(
        self, text: str, data: Mapping[str, Any], metadata: Mapping[str, dg.MetadataValue]
    ) -> None:
        calls = dg.MetadataValue.json({"params": dict(self._execution.params), **data})
        report_engine_event(
            self._instance, self._run, self._step_key, text, {**metadata, _CALLS: calls}
        )


@dataclass(frozen=True)
class CallHandle:
    """What is known of a call that is about to be made."""

    calls: StepCalls
    name: str

    @property
    def crashed(self) -> Iterator[tuple[int, PipesParams]]:
        """The attempts in earlier executions of the step that have crashed, the latest last."""
        return self.calls.crashed(self.name)

    def params_of(self, attempt: int) -> PipesParams:
        """Where the messages of an attempt will be. A retry is recorded in the event log."""
        if attempt > 1:
            self.calls.report_retry(self.name, attempt)
        return self.calls.params_of(self.name, attempt)


class LoggedLines:
    """Lines in the log of a step, which a call that is followed must not log again."""

    def __init__(self, lines: Iterable[tuple[int, str]]) -> None:
        self._lock = threading.Lock()  # guards the attribute below
        self._lines = Counter(lines)

    def take(self, level: int, text: str) -> bool:
        """Whether a line is in the log already. Each one counts once."""
        with self._lock:
            is_known = self._lines[level, text] > 0
            self._lines[level, text] -= is_known
        return is_known


def _logged_lines(context: StepContext, since: float) -> LoggedLines:
    step_key = _step_key(context)
    return LoggedLines(
        (int(entry.level), entry.user_message)
        for entry in context.instance.all_logs(context.run_id)
        if entry.step_key == step_key and entry.dagster_event is None and entry.timestamp >= since
    )


def call_identity(target: str, event: bytes, data: PipesContextData) -> str:
    """What is called: calls with the same identity do the same work.

    Args:
        target: What is called, such as a URL.
        event: The event, as JSON.
        data: The Pipes context.
    """
    context = {name: data.get(name) for name in _IDENTITY}
    context["extras"] = {k: v for k, v in (data["extras"] or {}).items() if k not in _OF_RUN}
    text = json.dumps([target, context], sort_keys=True, default=str)
    return hashlib.sha256(text.encode() + event).hexdigest()[:16]


def earlier_run_ids(context: StepContext) -> list[str]:
    """The runs that have executed the step before, the oldest first.

    They are this run, if the step is retried or the run was resumed, and those that it re-executes
    from failure.
    """
    if is_called_directly(context):
        return []
    run_ids = [context.run_id] if _was_executed(context) else []
    run: dg.DagsterRun | None = context.run
    while run and run.parent_run_id and any(run.tags.get(tag) == "true" for tag in _FROM_FAILURE):
        run_ids.insert(0, run.parent_run_id)
        if len(run_ids) > _MOST_PARENTS:
            break
        run = context.instance.get_run_by_id(run.parent_run_id)
    return run_ids


def _was_executed(context: StepContext) -> bool:
    """Whether the step was executed before in this run."""
    if context.retry_number > 0:
        return True
    if not may_resume_runs(context.instance):
        return False
    return start_count(context.instance, context.run_id, _step_key(context)) > 1


def _step_key(context: StepContext) -> str:
    return context.get_step_execution_context().step.key


def _crashed_executions(context: StepContext) -> list[_Execution]:
    """The earlier executions of the step that have crashed since it last failed."""
    step_key = _step_key(context)
    found: list[_Execution] = []
    for run_id in earlier_run_ids(context):
        before_start = list(found)
        for entry in context.instance.all_logs(run_id, of_type=_EVENT_TYPES):
            if entry.step_key != step_key:
                continue
            match entry.dagster_event_type:
                case dg.DagsterEventType.ENGINE_EVENT:
                    _add(found, entry)
                case dg.DagsterEventType.STEP_START | dg.DagsterEventType.STEP_RESTARTED:
                    before_start = list(found)
                case _ if not _is_crash(entry):
                    found = []
        if run_id == context.run_id:
            found = before_start  # without what this execution has recorded
    return found


def _is_crash(entry: dg.EventLogEntry) -> bool:
    """Whether a step failed because its process ended. In Kubernetes, Dagster records no error."""
    classes = error_classes(entry)
    return not classes or not _CRASHES.isdisjoint(classes)


def _add(found: list[_Execution], entry: dg.EventLogEntry) -> None:
    """Add what an engine event says of calls."""
    recorded = engine_event_metadata(entry).get(_CALLS)
    match recorded.value if isinstance(recorded, dg.JsonMetadataValue) else None:
        case {"params": params, "call": str(name), "attempt": int(attempt)}:
            for execution in found:
                if execution.params == params:
                    execution.attempts[name] = attempt
        case {"over": str(key_prefix)}:
            for execution in found:
                execution.over.add(key_prefix)
        case {"params": {"key_prefix": str()} as params}:
            found.append(_Execution(entry.run_id, params, entry.timestamp))
