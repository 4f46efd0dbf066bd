"""Launches the calls of a step as executions of a Cloud Run job.

An execution has no response. Its messages say first what happens; how it ended, the API says later.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from dagster_pipes import (
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    decode_param,
    encode_param,
)
from google.api_core.exceptions import NotFound
from google.cloud import run_v2, storage

from gcp_pipes.orchestrator.event import request_body
from gcp_pipes.orchestrator.execution_ending import (
    ExecutionEnding,
    closed_ending,
    may_have_started,
    rejection,
    task_ending,
)
from gcp_pipes.orchestrator.executions import API_ERRORS, JobExecutions, environment_of
from gcp_pipes.orchestrator.launcher import Launch, Launcher, Outcome, PipesCallError
from gcp_pipes.protocol import (
    EVENT_PARAMETER,
    STORED_EVENT_PARAMETER,
    first_prefix,
    retried_prefix,
    retry_number,
    stored_event_name,
)

_LONGEST_VALUE = 32_768  # characters of an environment variable
_TIME_TO_START = 3600.0  # seconds; an execution may wait for a GPU
_TIME_TO_END = 15.0  # seconds, after the last message
_MARGIN = 30.0  # seconds after the timeout of a task, until Cloud Run ends it
_TIME_TO_RETRY = 60.0  # seconds until Cloud Run has started a failed task again, if it does
_TIME_TO_CANCEL = 10.0  # seconds
_TIME_TO_JOIN = 2.0  # seconds without a new attempt, after which no more are waited for
_SEARCH_TIME = 10.0  # seconds to look for an execution whose response was lost


class PipesCloudRunJobError(PipesCallError):
    """A call of a Cloud Run job failed. It fails the step."""


class _EventNotStoredError(Exception):
    """An event that is too long for the environment could not be stored."""


@dataclass(frozen=True)
class _Task:
    """A task, by the name of its execution and its index."""

    execution: str
    index: int


class _Batch:
    """Attempts that are the tasks of one execution.

    Attributes:
        launches: The attempts; that of each task is at its index.
        is_closed: Whether no further one is added. Guarded by the lock of the launcher.
        has_run: Set when the execution was started, or could not be.
        execution: The name of the execution.
        error: Why there is none.
        events: The object with the events, if they are not in the environment.
    """

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.is_closed = False
        self.has_run = threading.Event()
        self.execution = ""
        self.error: Exception | None = None
        self.events: storage.Blob | None = None


class CloudRunJobLauncher(Launcher):
    """Runs a job. Attempts that are launched at the same time are tasks of one execution.

    Args:
        executions: The executions of the job.
        args: Replace the arguments of the job's container; None keeps them.
        bucket: Where events are stored that are too long for the environment; None if nowhere.
    """

    what = "Cloud Run job"
    target_kind = "job"
    error = PipesCloudRunJobError
    deploy = "deploy the job"
    time_to_start = _TIME_TO_START

    def __init__(
        self,
        executions: JobExecutions,
        *,
        args: Sequence[str] | None = None,
        bucket: storage.Bucket | None = None,
    ) -> None:
        self.target = executions.job if args is None else f"{executions.job} {list(args)}"
        self._executions = executions
        self._args = args
        self._bucket = bucket
        self._expected = 1
        self._reading = threading.Lock()  # guards the attribute below
        self._stored: dict[str, list[str | None]] = {}  # key prefixes, by stored events
        self._lock = threading.Lock()  # guards the attributes below
        self._batch = _Batch()
        self._tasks: dict[str, _Task] = {}  # by key prefix
        self._requested: set[str] = set()  # key prefixes of tasks whose execution may have started
        self._in_flight: dict[str, set[str]] = defaultdict(set)  # key prefixes, by execution
        self._cancelled: set[str] = set()  # key prefixes
        self._ending: set[str] = set()  # names of executions that were cancelled

    def expect(self, count: int) -> None:
        """Learn how many tasks the next execution has.

        Args:
            count: How many.
        """
        self._expected = count

    def launch(self, launch: Launch) -> ExecutionEnding:
        """Run the job, and wait until the task has ended.

        Args:
            launch: The attempt.
        """
        started = time.monotonic()
        with self._lock:
            if self._batch.is_closed:
                self._batch = _Batch()
            batch, index = self._batch, len(self._batch.launches)
            batch.launches.append(launch)
        if index == 0:
            self._run_batch(batch)
        batch.has_run.wait()  # ends: every request has a time limit
        if batch.error is not None:
            return rejection(batch.error, time.monotonic() - started)
        return self._wait_and_leave(launch, started, batch)

    def is_launched(self, key_prefix: str) -> bool:
        """Whether there is an execution of an attempt that has not ended.

        Args:
            key_prefix: The key prefix of the messages.
        """
        with suppress(*API_ERRORS):  # then another one is launched, which replaces this one
            return any(not each.completion_time for each, _ in self._find(key_prefix))
        return False

    def follow(self, launch: Launch) -> ExecutionEnding | None:
        """Wait for a task that a step had started which has crashed.

        Args:
            launch: The attempt, without its event.
        """
        first = first_prefix(launch.key_prefix)
        with self._lock:
            task = self._tasks.get(launch.key_prefix) or self._tasks.get(first)
        if task is None:
            found = self._search(first, _SEARCH_TIME)
            if found is None:
                return None
            task = _Task(found[0].name, found[1])
        self._enter(launch.key_prefix, task)
        return self._wait_and_leave(launch, time.monotonic())

    def cancel(self, calls: Sequence[Mapping[str, Any]], timeout: float) -> str | None:
        """Cancel executions. One task alone cannot be cancelled: the last one in flight does it.

        Args:
            calls: The calls.
            timeout: How long to wait for a response, in seconds.

        Returns:
            Why that failed, or None.
        """
        prefixes = {call["key_prefix"] for call in calls}
        with self._lock:
            self._cancelled |= prefixes
            names = {self._tasks[each].execution for each in prefixes & self._tasks.keys()}
            unknown = prefixes - self._tasks.keys()
        deadline = time.monotonic() + timeout
        try:
            for key_prefix in unknown:  # the process of a step has crashed, or was just terminated
                is_requested = key_prefix in self._requested
                seconds = deadline - time.monotonic() if is_requested else 0.0
                if found := self._search(key_prefix, seconds):
                    self._cancel_unknown(found[0], timeout)
            for name in names:
                self._cancel_if_idle(name, timeout)
        except API_ERRORS as error:
            return rejection(error, 0.0).error
        return None

    def _cancel_unknown(self, execution: run_v2.Execution, timeout: float) -> None:
        """Cancel an execution that is not followed, if none of its tasks is needed."""
        prefixes = self._prefixes_of(execution)
        with self._lock:
            is_needed = not self._cancelled.issuperset(prefixes)
        if not (execution.completion_time or is_needed):
            self._executions.cancel(execution.name, timeout)

    def _run_batch(self, batch: _Batch) -> None:
        """Start the execution of a batch, once all its attempts are there."""
        try:
            self._fill(batch)
            self._run(batch)
        except Exception as error:
            batch.error = error
        finally:
            batch.has_run.set()

    def _fill(self, batch: _Batch) -> None:
        """Wait until all expected attempts are there, or no further one has come for a while."""
        known, deadline = 1, time.monotonic() + _TIME_TO_JOIN
        while len(batch.launches) < self._expected and time.monotonic() < deadline:
            time.sleep(_TIME_TO_JOIN / 100)
            if len(batch.launches) > known:
                known, deadline = len(batch.launches), time.monotonic() + _TIME_TO_JOIN
        with self._lock:
            batch.is_closed = True

    def _run(self, batch: _Batch) -> None:
        """Start the execution of a batch, or find it, if the response is lost."""
        prefixes = [each.key_prefix for each in batch.launches]
        environment = self._environment(batch)
        with self._lock:
            self._requested.update(prefixes)
        try:
            batch.execution = self._executions.run(
                environment,
                args=self._args,
                tasks=len(prefixes),
                timeout=batch.launches[0].timeout + _MARGIN,
            )
        except Exception as error:
            found = self._search(prefixes[0], _SEARCH_TIME) if may_have_started(error) else None
            if found is None:
                _delete(batch.events)
                raise
            batch.execution = found[0].name
        for index, key_prefix in enumerate(prefixes):
            self._enter(key_prefix, _Task(batch.execution, index))
        with suppress(*API_ERRORS):  # if it was cancelled while the request was in flight
            self._cancel_if_idle(batch.execution, _TIME_TO_CANCEL)

    def _environment(self, batch: _Batch) -> dict[str, str]:
        """The environment variables of an execution, with the event of its task.

        If there are several tasks, or it is too long, the events are in the messages bucket.
        """
        first = batch.launches[0]
        standard = first.session.get_bootstrap_env_vars()
        own = {k: v for k, v in first.parameters.items() if k not in standard}
        event = encode_param({**json.loads(first.event), **own})
        is_short = max(map(len, (*standard.values(), event))) <= _LONGEST_VALUE
        if is_short and len(batch.launches) == 1:
            return {**standard, EVENT_PARAMETER: event}
        batch.events = self._store_events(batch.launches)
        return {
            DAGSTER_PIPES_MESSAGES_ENV_VAR: standard[DAGSTER_PIPES_MESSAGES_ENV_VAR],
            STORED_EVENT_PARAMETER: f"gs://{batch.events.bucket.name}/{batch.events.name}",
        }

    def _store_events(self, launches: Sequence[Launch]) -> storage.Blob:
        """Store the events of the tasks, as a list, in the messages bucket."""
        if self._bucket is None:
            raise _EventNotStoredError(
                "An event of more than 32,768 characters, and those of several tasks, are stored "
                "in the messages bucket, which requires PipesCloudStorageMessageReader."
            )
        blob = self._bucket.blob(stored_event_name(launches[0].key_prefix))
        events = b",".join(request_body(each.event, each.parameters) for each in launches)
        try:
            blob.upload_from_string(b"[" + events + b"]", content_type="application/json")
        except API_ERRORS as error:
            raise _EventNotStoredError(
                f"The event could not be stored in gs://{self._bucket.name}/{blob.name}: {error}. "
                "Dagster needs roles/storage.objectUser on the bucket, to store and delete it."
            ) from error
        return blob

    def _find(
        self, key_prefix: str, max_age: float | None = None
    ) -> Iterator[tuple[run_v2.Execution, int]]:
        """The executions of an attempt, each with the index of its task."""
        for execution in self._executions.newest_first(max_age):
            first = _key_prefix(environment_of(execution))
            if first is not None and _are_of_one_step(first, key_prefix):
                prefixes = self._prefixes_of(execution)
                if key_prefix in prefixes:
                    yield execution, prefixes.index(key_prefix)

    def _prefixes_of(self, execution: run_v2.Execution) -> Sequence[str | None]:
        """The key prefixes of the tasks of an execution, by its events."""
        environment = environment_of(execution)
        uri = environment.get(STORED_EVENT_PARAMETER)
        if execution.task_count == 1 or uri is None or self._bucket is None:
            return [_key_prefix(environment)]
        with self._reading:  # once, for hundreds of threads
            if uri not in self._stored:
                blob = storage.Blob.from_uri(uri, client=self._bucket.client)
                try:
                    events = json.loads(blob.download_as_bytes())
                except NotFound:  # its tasks have ended
                    events = []
                self._stored[uri] = [_key_prefix(each) for each in events]
            return self._stored[uri]

    def _search(self, key_prefix: str, seconds: float) -> tuple[run_v2.Execution, int] | None:
        """The execution of an attempt, which may appear in the list a little later."""
        deadline, delay = time.monotonic() + seconds, 0.25
        while True:
            with suppress(*API_ERRORS):
                for found in self._find(key_prefix, max_age=delay):
                    return found
            if time.monotonic() + delay > deadline:
                return None
            time.sleep(delay)
            delay *= 2

    def _enter(self, key_prefix: str, task: _Task) -> None:
        """Record that a task is in flight."""
        with self._lock:
            self._tasks[key_prefix] = task
            self._in_flight[task.execution].add(key_prefix)

    def _wait_and_leave(
        self, launch: Launch, started: float, batch: _Batch | None = None
    ) -> ExecutionEnding:
        """Wait for a task. The last task in flight deletes the events, and cancels what is left."""
        task, ending = self._tasks[launch.key_prefix], None
        try:
            ending = self._wait(launch, task, started)
        finally:
            if ending is not None and ending.successor is not None:
                self._enter(ending.successor, task)
            with self._lock:
                self._in_flight[task.execution].discard(launch.key_prefix)
                is_last = not self._in_flight[task.execution]
            if is_last and batch is not None:
                _delete(batch.events)
            with suppress(*API_ERRORS):
                self._cancel_if_idle(task.execution, _TIME_TO_CANCEL)
        return ending

    def _cancel_if_idle(self, name: str, timeout: float) -> None:
        """Cancel an execution if a task of it is cancelled, and no other one is in flight."""
        with self._lock:
            of_tasks = {prefix for prefix, task in self._tasks.items() if task.execution == name}
            is_cancelled = not of_tasks.isdisjoint(self._cancelled)
            is_idle = self._in_flight[name] <= self._cancelled
            must_cancel = is_cancelled and is_idle and name not in self._ending
            if must_cancel:
                self._ending.add(name)
        if must_cancel:
            try:
                self._executions.cancel(name, timeout)
            except Exception:
                with self._lock:
                    self._ending.discard(name)
                raise

    def _wait(self, launch: Launch, task: _Task, started: float) -> ExecutionEnding:
        """Wait until a task has ended, or its time is over."""
        handler = launch.handler
        execution, is_deleted = self._watch(launch, task)
        seconds = time.monotonic() - started
        retries = self._retries(execution, task.index, launch)
        if retries:
            successor = retried_prefix(launch.key_prefix, retries)
            return ExecutionEnding(Outcome.FINISHED, None, seconds, successor=successor)
        has_succeeded = handler.has_closed and handler.exception is None
        if is_deleted and not has_succeeded:
            deleted = "The execution was deleted."
            return ExecutionEnding(Outcome.FINISHED, deleted, seconds, execution=task.execution)
        if execution is not None and (execution.completion_time or handler.silence is not None):
            of_several = None
            if execution.task_count > 1:
                of_several = self._executions.task(execution, task.index)
            if of_several is not None or execution.task_count == 1 or not has_succeeded:
                return task_ending(execution, of_several, seconds)
        if handler.has_closed:
            return closed_ending(task.execution, execution, seconds)
        with self._lock:
            self._cancelled.add(launch.key_prefix)
        ending = closed_ending(task.execution, execution, seconds)
        problem = f"The execution had not ended after {seconds:.0f} s."
        return replace(ending, error=problem, state="running")

    def _watch(self, launch: Launch, task: _Task) -> tuple[run_v2.Execution | None, bool]:
        """Look at an execution until it, or the task, has ended, or the time of the task is over.

        The time counts from when the task has started: it may wait for a machine, and for others.

        Returns:
            The execution, as far as it is known, and whether it was deleted.
        """
        handler, interval = launch.handler, self._executions.interval
        limit = time.monotonic() + self.time_to_start
        execution, progress, misses, has_started = None, None, 0, False
        is_finished = False
        while time.monotonic() < limit:
            if handler.finished.is_set():
                time.sleep(min(1.0, interval))
            else:
                handler.finished.wait(interval)
            try:
                execution = self._executions.get(task.execution)
                misses = 0
            except NotFound:
                misses += 1
                if execution is not None or misses > 1:
                    return execution, True
            except API_ERRORS:  # the messages go on, and the next look may succeed
                pass
            if execution is not None:
                if execution.completion_time or self._retries(execution, task.index, launch):
                    break
                latest = (
                    execution.running_count,
                    execution.succeeded_count,
                    execution.failed_count,
                )
                if latest != progress and any(latest) and not has_started:
                    progress, limit = latest, time.monotonic() + launch.timeout + _MARGIN
            if not has_started and handler.started.is_set():
                has_started, limit = True, time.monotonic() + launch.timeout + _MARGIN
            if handler.finished.is_set() and not is_finished:
                is_finished, limit = True, time.monotonic() + _time_to_end(execution, launch)
        return execution, False

    def _retries(self, execution: run_v2.Execution | None, index: int, launch: Launch) -> int:
        """How often Cloud Run has started a task again, if that has replaced this attempt; or 0."""
        if execution is None or not execution.retried_count:  # of tasks, not of their retries
            return 0
        attempt = retry_number(launch.key_prefix)
        if launch.handler.has_opened:
            attempt = launch.handler.task_attempt
        elif attempt == 0:  # the next one has the same key prefix
            return 0
        task = self._executions.task(execution, index)
        return int(task.retried) if task is not None and task.retried > attempt else 0


def _time_to_end(execution: run_v2.Execution | None, launch: Launch) -> float:
    """How long to wait for what the API says of a task that has closed, or counts as dead."""
    handler = launch.handler
    has_failed = handler.exception is not None or handler.silence is not None
    if execution is None:
        return _TIME_TO_END
    if has_failed and execution.template.max_retries > retry_number(launch.key_prefix):
        return _TIME_TO_RETRY
    return _TIME_TO_END if execution.task_count == 1 else 0.0  # the others go on


def _delete(events: storage.Blob | None) -> None:
    """Delete events, if they were stored."""
    if events is not None:
        with suppress(*API_ERRORS):  # the lifecycle rule of the bucket deletes them later
            events.delete()


def _key_prefix(environment: Mapping[str, Any]) -> str | None:
    """Where a task stores its messages; None if it is not one of Dagster's."""
    with suppress(Exception):  # a variable that is not Dagster's
        return str(decode_param(environment[DAGSTER_PIPES_MESSAGES_ENV_VAR])["key_prefix"])
    return None


def _are_of_one_step(first: str, second: str) -> bool:
    """Whether two key prefixes begin alike, as those of all calls of a step do."""
    return first.partition("/")[0] == second.partition("/")[0]
