"""Calls work that runs elsewhere from a Dagster step, and reports its results as those of the step.

A call opens a Pipes session, launches the work with the Dagster context, and reads messages until
it has ended (`call.py`). What the launcher knows and the messages then decide whether the step
succeeds (`outcome.py`). Where the work runs is up to the launcher (`launcher.py`).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict
from weakref import WeakKeyDictionary

import dagster as dg
from dagster_pipes import PipesContextData, PipesExtras

from gcp_pipes.orchestrator.call import Attempt, Caller
from gcp_pipes.orchestrator.context import (
    Context,
    StepContext,
    assets_of_step,
    build_context_data,
    checks_of_step,
    for_partition,
    for_task,
    required_assets,
)
from gcp_pipes.orchestrator.dagster_internals import TreatAsResourceParam, is_called_directly
from gcp_pipes.orchestrator.event import Event, EventError
from gcp_pipes.orchestrator.launcher import Launcher
from gcp_pipes.orchestrator.message_reader import PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.messages import CallMessageHandler, ReaderAnywhere
from gcp_pipes.orchestrator.outcome import describe, details, find_problem, summarize
from gcp_pipes.orchestrator.partitions import (
    PartitionEvent,
    PartitionMessageHandler,
    run_partitions,
)
from gcp_pipes.orchestrator.partitions.fan_out import Report
from gcp_pipes.orchestrator.results import CompletedCall
from gcp_pipes.orchestrator.step_calls import CallHandle, StepCalls, call_identity
from gcp_pipes.orchestrator.tasks import run_tasks


class ClientOptions(TypedDict, total=False):
    """What can be set for every client.

    Attributes:
        timeout: How long a call may take, in seconds; an hour by default. The task is then stopped,
            unless the place where it runs allows less. If the response is lost, the client waits as
            long for messages.
        retry_timeout: Seconds during which a call that did not start is retried; 60 by default.
        forward_termination: Whether calls are cancelled if their run is terminated, as they are by
            default. Otherwise they go on.
        implicit_materializations: Whether an asset that is not reported counts as materialized if
            the call succeeds. By default, the call fails.
        max_log_lines: How many log lines of a call go into the event log, where each takes about a
            millisecond; 10,000 by default. Further ones go to the compute logs of the step.
    """

    timeout: float
    retry_timeout: float
    forward_termination: bool
    implicit_materializations: bool
    max_log_lines: int


class CallOptions(TypedDict, total=False):
    """What can be set for each call.

    Attributes:
        extras: Values for `pipes.extras` in the task.
        run_tags: Names of tags of the run, for `pipes.extras["run_tags"]` in the task.
        timeout: As for the client, for this call; or for each one, if there are several.
        retry_timeout: As for the client, for this call. With several, it starts again while another
            call is running.
    """

    extras: PipesExtras | None
    run_tags: Sequence[str]
    timeout: float | None
    retry_timeout: float | None


class PipesExternalClient(dg.PipesClient, TreatAsResourceParam):
    """Runs the work of an asset or op elsewhere.

    One client can make any number of calls, also at the same time.

    Args:
        message_reader: Reads the messages of the work.
        context_injector: Sends the Dagster context to the work. The default puts it into the
            parameters of Pipes.
        timeout: See `ClientOptions`, as for all that follow.
        retry_timeout: See there.
        forward_termination: See there.
        implicit_materializations: See there.
        max_log_lines: See there.
    """

    def __init__(
        self,
        message_reader: dg.PipesMessageReader,
        context_injector: dg.PipesContextInjector | None = None,
        *,
        timeout: float = 3600.0,
        retry_timeout: float = 60.0,
        forward_termination: bool = True,
        implicit_materializations: bool = False,
        max_log_lines: int = 10_000,
    ) -> None:
        self._message_reader = message_reader
        self._context_injector = context_injector or dg.PipesEnvContextInjector()
        self._timeout = timeout
        self._retry_timeout = retry_timeout
        self._forward_termination = forward_termination
        self.implicit_materializations = implicit_materializations
        self._max_log_lines = max_log_lines
        self._lock = threading.Lock()  # guards the attribute below
        self._calls: WeakKeyDictionary[StepContext, StepCalls] = WeakKeyDictionary()

    def run(  # type: ignore[override]  # the base class leaves the arguments open
        self,
        *,
        context: Context,
        launcher: Launcher,
        event: Event,
        task_count: int = 1,
        extras: PipesExtras | None = None,
        run_tags: Sequence[str] = (),
        timeout: float | None = None,
        retry_timeout: float | None = None,
    ) -> CompletedCall:
        """Make one call, and wait until it has finished.

        If it has several tasks, they run at the same time. Each finds `task_index`, from 0, and
        `task_count` in `pipes.extras`. The results are those of all tasks together, and an asset or
        a check is reported by one of them. If a task fails, the call does.

        Args:
            context: The context of the asset, the asset check, or the op.
            launcher: Launches the work.
            event: The task's inputs: a JSON object.
            task_count: How many tasks there are.
            extras: See `CallOptions`, as for all that follow.
            run_tags: See there.
            timeout: See there.
            retry_timeout: See there.

        Returns:
            What the task reported. Return it from an asset by `.get_materialize_result()`, and
            from an asset check by `.get_asset_check_result()`. Yield several results, or
            observations, by `.get_results()`.

        Raises:
            PipesCallError: The call failed; of the launcher's own class.
        """
        if task_count < 1:
            raise launcher.error(
                f"task_count must be 1 or more; it is {task_count}.", allow_retries=False
            )
        step = context.op_execution_context
        context_data = build_context_data(step, extras=extras, run_tags=run_tags)
        _require_results(
            step,
            f"The results of {type(self).__name__}.run were not returned. End the asset with "
            "`return client.run(...).get_materialize_result()`, a check with "
            "`.get_asset_check_result()`, and what has several, or observes, with `yield from "
            "client.run(...).get_results()`.",
        )
        caller = self._make_caller(step, launcher, timeout, retry_timeout)

        def call(data: PipesContextData, make_handler: Callable[[], CallMessageHandler]) -> Attempt:
            body = _serialize(launcher, event, data)
            handle = self._handle(step, launcher, body, data, timeout)
            return caller.call(body, data, make_handler, handle)

        reader, limit = self._message_reader, self._max_log_lines
        if task_count == 1:
            attempt = call(context_data, lambda: CallMessageHandler(step, reader, limit))
        else:
            if isinstance(reader, PipesCloudStorageMessageReader):
                reader = reader.for_many_calls(task_count)
            attempt = run_tasks(
                step,
                lambda index, enqueue: call(
                    for_task(context_data, int(index), task_count),
                    lambda: PartitionMessageHandler(step, reader, limit, f"task {index}", enqueue),
                ),
                count=task_count,
                expect=launcher.expect,
                cancel=caller.cancel,
                no_messages_hint=reader.no_messages_debug_text(),
            )
        completed = self._complete(step, attempt)
        for observation in attempt.handler.observations:
            step.log_event(observation)
        return completed

    def run_partitions(
        self,
        *,
        context: Context,
        launcher: Launcher,
        event: Event | Callable[[str], Event],
        extras: PipesExtras | None = None,
        run_tags: Sequence[str] = (),
        max_in_flight: int = 10,
        timeout: float | None = None,
        retry_timeout: float | None = None,
    ) -> Iterator[PartitionEvent]:
        """Make a call for each partition of the run, several at the same time.

        Args:
            context: The context of the asset.
            launcher: Launches the work.
            event: The task's inputs: a JSON object, or a function that makes it for a partition
                key. That is called in one of the threads that make the calls.
            extras: See `CallOptions`.
            run_tags: See there.
            max_in_flight: How many calls may be in flight at the same time.
            timeout: See `CallOptions`.
            retry_timeout: See there.

        Returns:
            What the asset yields, by `yield from`, which makes the calls.

        Raises:
            PipesCallError: `max_in_flight` is less than 1; or, while results are yielded, calls
                failed; of the launcher's own class.
        """
        step = context.op_execution_context
        _require_results(
            step,
            f"The results of {type(self).__name__}.run_partitions were not yielded. End the asset "
            "with `yield from client.run_partitions(...)`.",
        )
        if max_in_flight < 1:
            raise launcher.error(
                f"max_in_flight must be 1 or more; it is {max_in_flight}.", allow_retries=False
            )
        make_event = event if callable(event) else lambda _: event
        if not step.has_partition_key_range:
            done = PipesExternalClient.run(
                self,
                context=step,
                launcher=launcher,
                event=make_event(step.partition_key),
                extras=extras,
                run_tags=run_tags,
                timeout=timeout,
                retry_timeout=retry_timeout,
            )
            log_custom_messages(step, done)
            # A generator: Dagster accepts no other iterator from an asset.
            return (each for each in done.get_results())
        caller = self._make_caller(step, launcher, timeout, retry_timeout)
        context_data = build_context_data(step, extras=extras, run_tags=run_tags)
        reader = self._message_reader
        if isinstance(reader, PipesCloudStorageMessageReader):
            reader = reader.for_many_calls(min(max_in_flight, len(step.partition_keys)))

        def call(key: str, enqueue: Callable[[Report], None]) -> Attempt:
            data = for_partition(step, context_data, key)
            body = _serialize(launcher, make_event(key), data)
            return caller.call(
                body,
                data,
                lambda: PartitionMessageHandler(step, reader, self._max_log_lines, key, enqueue),
                self._handle(step, launcher, body, data, timeout),
            )

        return run_partitions(
            step,
            call,
            expect=launcher.expect,
            cancel=caller.cancel,
            complete=lambda attempt: self._complete(step, attempt),
            max_in_flight=max_in_flight,
            error=launcher.error,
        )

    def _complete(self, context: StepContext, attempt: Attempt) -> CompletedCall:
        """The results of a call; an error if it failed."""
        metadata = describe(attempt)
        problem = find_problem(
            context,
            attempt,
            no_messages_hint=self._message_reader.no_messages_debug_text(),
            implicit_materializations=self.implicit_materializations,
        )
        if problem:
            raise attempt.launcher.error(
                f"{problem}\n\n{summarize(details(attempt))}",
                metadata=metadata,
                allow_retries=not attempt.handler.is_wrong_version,
            )
        implicit = self.implicit_materializations
        return CompletedCall(context, attempt, metadata, implicit_materializations=implicit)

    def _handle(
        self,
        context: StepContext,
        launcher: Launcher,
        event: bytes,
        context_data: PipesContextData,
        timeout: float | None,
    ) -> CallHandle | None:
        """The handle of a call that is about to be made, by which a later execution finds it."""
        reader = self._message_reader
        if not isinstance(reader, ReaderAnywhere) or is_called_directly(context):
            return None
        with self._lock:
            if context not in self._calls:
                self._calls[context] = StepCalls(
                    context,
                    reader.get_params(),
                    target=launcher.target,
                    timeout=self._timeout if timeout is None else timeout,
                )
            calls = self._calls[context]
        return calls.next_call(call_identity(launcher.target, event, context_data))

    def _make_caller(
        self,
        context: StepContext,
        launcher: Launcher,
        timeout: float | None,
        retry_timeout: float | None,
    ) -> Caller:
        return Caller(
            context,
            launcher,
            self._context_injector,
            timeout=self._timeout if timeout is None else timeout,
            retry_timeout=self._retry_timeout if retry_timeout is None else retry_timeout,
            forward_termination=self._forward_termination,
        )


def _serialize(launcher: Launcher, event: Event, context_data: PipesContextData) -> bytes:
    try:
        return launcher.serialize(event, context_data)
    except EventError as error:
        raise launcher.error(str(error), allow_retries=False) from error


def log_custom_messages(context: Context, done: dg.PipesClientCompletedInvocation) -> None:
    """Log the custom messages of a call, where the asset has no code that reads them."""
    for payload in done.get_custom_messages():
        context.log.info(f"Custom message: {payload}")


def _require_results(context: StepContext, error_message: str) -> None:
    """Make the step fail if it does not yield its results, unless some of them are optional.

    An op that only prepares the work on an asset yields nothing but its own output.
    """
    assets = assets_of_step(context)
    yields = assets | checks_of_step(context)
    if yields and assets == required_assets(context):
        context.set_requires_typed_event_stream(error_message=error_message)
