"""Calls a cloud function from a Dagster asset, and reports what it did as the asset's own doing.

One call, from end to end: `PipesCloudFunctionClient.run` opens a Pipes session (the Dagster context
goes into the event, the message reader begins to look for messages), posts the event, waits for the
answer while messages arrive (all of this in `call.py`), and then judges by both whether the step
has succeeded (`verdict.py`).
"""

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import dagster as dg
import requests
from dagster_pipes import PipesContextData, PipesExtras

from .call import Attempt, CloudFunctionCaller
from .context_data import (
    Context,
    StepContext,
    assets_of_step,
    build_context_data,
    checks_of_step,
    for_partition,
    required_assets,
)
from .dagster_internals import TreatAsResourceParam
from .event import Event, EventError, serialize
from .fan_out import Call, EndedCall, FanOut, Report
from .identity import IdentityError, http_session, root_url
from .message_handler import CloudFunctionMessageHandler, PartitionMessageHandler
from .message_reader import PipesCloudStorageMessageReader
from .partition_results import PartitionEvent, PartitionResults, missing_partitions
from .results import CompletedCall
from .verdict import (
    PipesCloudFunctionError,
    describe,
    find_missing_results,
    find_problem,
    is_out_of_reach,
    reason,
    summarize,
)

_MUST_RETURN_RESULTS = (
    "The results of PipesCloudFunctionClient.run were not returned. End the asset with `return "
    "client.run(...).get_materialize_result()`, a check with `.get_asset_check_result()`, and what "
    "has several, or observes, with `yield from client.run(...).get_results()`."
)
_MUST_YIELD_RESULTS = (
    "The results of PipesCloudFunctionClient.run_partitions were not yielded. End the asset with "
    "`yield from client.run_partitions(...)`."
)


class PipesCloudFunctionEventContextInjector(dg.PipesEnvContextInjector):
    """Puts the Dagster context into the event, the body of the request."""

    def no_messages_debug_text(self) -> str:
        """What to look at when no message came."""
        return "The Dagster context was sent in the event, the body of the request."


class PipesCloudFunctionClient(dg.PipesClient, TreatAsResourceParam):
    """Does the work of an asset or op in a Google Cloud Function.

    One client serves any number of calls, in turn or at once, over connections that it keeps until
    it is closed.

    Args:
        message_reader: Brings the function's messages back.
        context_injector: Sends the Dagster context to the function; in the event, unless another is
            given.
        timeout: How long a call may take, in seconds, if that is less than the function's own
            timeout: the function stops its task then. Where the connection is lost, the messages of
            the function are awaited for as long.
        retry_timeout: Seconds for which a call is tried again that cannot have started any work:
            no connection could be made, or Google Cloud answered 429 or 503 for the function.
        implicit_materializations: Whether an asset that the function does not report is taken for
            materialized if the call succeeded.
        max_log_lines: How many log lines of a call go into the event log, which takes about a
            millisecond for each. Further ones go to the compute logs of the step.
        project: The Google Cloud project of the function, for the link to its logs.
        audience: Whom identity tokens are for; the function's root URL unless given.
        impersonate: The service account to call functions as, an e-mail address. Unless it is
            given, that is the account that Dagster runs as.
    """

    def __init__(
        self,
        message_reader: dg.PipesMessageReader,
        context_injector: dg.PipesContextInjector | None = None,
        *,
        timeout: float = 3600.0,
        retry_timeout: float = 60.0,
        implicit_materializations: bool = False,
        max_log_lines: int = 10_000,
        project: str | None = None,
        audience: str | None = None,
        impersonate: str | None = None,
    ) -> None:
        self._message_reader = message_reader
        self._context_injector = context_injector or PipesCloudFunctionEventContextInjector()
        self._timeout = timeout
        self._retry_timeout = retry_timeout
        self.implicit_materializations = implicit_materializations
        self._max_log_lines = max_log_lines
        self._project = project
        self._audience = audience
        self._impersonate = impersonate
        self._sessions: dict[str, requests.Session] = {}
        self._sessions_lock = threading.Lock()

    def run(  # type: ignore[override]  # the base class leaves the arguments open
        self,
        *,
        context: Context,
        function_url: str,
        event: Event,
        extras: PipesExtras | None = None,
        run_tags: Sequence[str] = (),
        timeout: float | None = None,
        retry_timeout: float | None = None,
    ) -> CompletedCall:
        """Call the function and wait until it is done. Its log lines appear while it works.

        A call that cannot have started any work is made again. One that may have is not: if its
        answer is lost, the function's messages decide. If the run is terminated, the function is
        told to end its work.

        Args:
            context: The context of the asset, the asset check, or the op.
            function_url: The function's URL. A request to https carries an identity token.
            event: The task's inputs: a JSON object.
            extras: More values for the function's Pipes context, there to be found as
                `pipes.extras`.
            run_tags: Names of tags of the run, which the function finds with their values in
                `pipes.extras["run_tags"]`.
            timeout: As for the client, for this call.
            retry_timeout: As for the client, for this call.

        Returns:
            What the function reported. Return it from the asset, by `.get_materialize_result()`,
            from an asset check by `.get_asset_check_result()`, and yield it by `.get_results()`
            where there are several, or observations.

        Raises:
            PipesCloudFunctionError: The event could not be sent, the function could not be called,
                failed, did not say how it ended, did not report every asset and every check of the
                step, or some of its messages were lost.
        """
        step = context.op_execution_context
        context_data = build_context_data(step, extras=extras, run_tags=run_tags)
        body = self._serialize(event, context_data)
        _insist_on_results(step, _MUST_RETURN_RESULTS)
        caller = self._make_caller(
            step, function_url, self._http_session(function_url), timeout, retry_timeout
        )
        attempt = caller.call(
            body,
            context_data,
            lambda: CloudFunctionMessageHandler(step, self._message_reader, self._max_log_lines),
        )
        return self._judge(step, attempt)

    def run_partitions(
        self,
        *,
        context: Context,
        function_url: str,
        event: Event | Callable[[str], Event],
        extras: PipesExtras | None = None,
        run_tags: Sequence[str] = (),
        max_in_flight: int = 10,
        timeout: float | None = None,
        retry_timeout: float | None = None,
    ) -> Iterator[PartitionEvent]:
        """Call the function for each partition of the run, several at the same time.

        This is for assets with `BackfillPolicy.single_run()`, whose runs may have many partitions.
        What the function reports of a partition is in the event log as soon as its call has ended.
        A partition that fails fails the step, but only when all others have had their calls. If the
        step is retried, or the run resumed from its failure, those partitions are left as they are
        that have been materialized. A run of a single partition is as by `run`.

        A check that is not partitioned itself is evaluated once, for all partitions together.

        Args:
            context: The context of the asset.
            function_url: The function's URL. A request to https carries an identity token.
            event: The task's inputs: a JSON object, or what makes it for a partition key, in one of
                the threads that make the calls.
            extras: More values for the function's Pipes context, there to be found as
                `pipes.extras`.
            run_tags: Names of tags of the run, which the function finds with their values in
                `pipes.extras["run_tags"]`.
            max_in_flight: How many calls there may be at the same time. More than the function's
                instances can take is of no use.
            timeout: As for the client, for each call.
            retry_timeout: As for the client, for each call; it begins anew while the function is at
                work on another partition.

        Returns:
            What the asset is to yield, by `yield from`. Only then are the calls for many partitions
            made.

        Raises:
            PipesCloudFunctionError: `max_in_flight` is less than 1; or, while results are yielded,
                the function could not be called, or partitions failed.
        """
        step = context.op_execution_context
        _insist_on_results(step, _MUST_YIELD_RESULTS)
        if max_in_flight < 1:
            raise PipesCloudFunctionError(
                f"max_in_flight must be 1 or more; it is {max_in_flight}.", allow_retries=False
            )
        make_event = event if callable(event) else lambda _: event
        if not step.has_partition_key_range:
            done = self.run(
                context=step,
                function_url=function_url,
                event=make_event(step.partition_key),
                extras=extras,
                run_tags=run_tags,
                timeout=timeout,
                retry_timeout=retry_timeout,
            )
            log_custom_messages(step, done)
            # A generator: Dagster takes no other iterator from an asset that returns it.
            return (each for each in done.get_results())
        # Connections of their own, for they are cut if the step is interrupted.
        session = self._open_http_session(function_url)
        caller = self._make_caller(step, function_url, session, timeout, retry_timeout)
        context_data = build_context_data(step, extras=extras, run_tags=run_tags)
        reader = self._message_reader
        if isinstance(reader, PipesCloudStorageMessageReader):
            reader = reader.for_many_calls(min(max_in_flight, len(step.partition_keys)))

        def call(key: str, leave: Callable[[Report], None]) -> Attempt:
            of_partition = for_partition(step, context_data, key)
            return caller.call(
                self._serialize(make_event(key), of_partition),
                of_partition,
                lambda: PartitionMessageHandler(step, reader, self._max_log_lines, key, leave),
            )

        return self._run_partitions(step, session, caller, call, max_in_flight)

    def close(self) -> None:
        """Close the connections. The client can be used again: it then opens new ones."""
        with self._sessions_lock:
            while self._sessions:
                self._sessions.popitem()[1].close()

    def _serialize(self, event: Event, context_data: PipesContextData) -> bytes:
        is_in_body = isinstance(self._context_injector, dg.PipesEnvContextInjector)
        try:
            return serialize(event, context_data if is_in_body else None)
        except EventError as error:
            raise PipesCloudFunctionError(str(error), allow_retries=False) from error

    def _judge(self, context: StepContext, attempt: Attempt) -> CompletedCall:
        """Judge a call that does all the work of the step, and log what it observed."""
        metadata = describe(attempt, self._project)
        if problem := self._find_problem(context, attempt):
            raise PipesCloudFunctionError(f"{problem}\n\n{summarize(metadata)}", metadata=metadata)
        for observation in attempt.handler.observations:
            context.log_event(observation)
        return self._completed(context, attempt, metadata)

    def _completed(
        self, context: StepContext, attempt: Attempt, metadata: dict[str, dg.MetadataValue]
    ) -> CompletedCall:
        implicit = self.implicit_materializations
        return CompletedCall(context, attempt, metadata, implicit_materializations=implicit)

    def _run_partitions(
        self,
        context: StepContext,
        session: requests.Session,
        caller: CloudFunctionCaller,
        call: Call,
        max_in_flight: int,
    ) -> Iterator[PartitionEvent]:
        """Make the calls, and yield what comes of them."""
        keys = missing_partitions(context)
        results = PartitionResults(context, keys)
        fan_out = FanOut(caller, call, keys, max_in_flight)
        with closing(session):
            for ended in fan_out.ended_calls():
                yield from self._conclude(context, results, ended)
                if isinstance(ended.outcome, Attempt) and is_out_of_reach(ended.outcome):
                    fan_out.begin_no_more()
        yield from results.conclude()
        if results.problem:
            raise PipesCloudFunctionError(results.problem, metadata=results.metadata)

    def _conclude(
        self, context: StepContext, results: PartitionResults, ended: EndedCall
    ) -> Iterator[PartitionEvent]:
        """Judge the call for a partition, and yield what comes of it."""
        attempt = ended.outcome
        if isinstance(attempt, PipesCloudFunctionError):  # the event could not be sent
            results.fail(ended.partition_key, str(attempt), str(attempt))
            return
        if isinstance(attempt, Exception):
            in_a_line = f"The call could not be made: {attempt!r}"
            text = "".join([in_a_line, "\n\n", *traceback.format_exception(attempt)])
            results.fail(ended.partition_key, text, in_a_line)
            return
        metadata = describe(attempt, self._project)
        problem = self._find_problem(context, attempt) or find_missing_results(
            context, attempt.handler, self.implicit_materializations
        )
        if problem:
            text = f"{problem}\n\n{summarize(metadata)}"
            results.fail(ended.partition_key, text, reason(attempt, problem))
            return
        yield from results.succeed(
            ended.partition_key,
            self._completed(context, attempt, metadata).get_results(),
            attempt.handler.observations,
        )

    def _find_problem(self, context: StepContext, attempt: Attempt) -> str | None:
        return find_problem(
            context,
            attempt,
            no_messages_hint=self._message_reader.no_messages_debug_text(),
            implicit_materializations=self.implicit_materializations,
        )

    def _make_caller(
        self,
        context: StepContext,
        function_url: str,
        session: requests.Session,
        timeout: float | None,
        retry_timeout: float | None,
    ) -> CloudFunctionCaller:
        return CloudFunctionCaller(
            context,
            function_url,
            session,
            self._context_injector,
            timeout=self._timeout if timeout is None else timeout,
            retry_timeout=self._retry_timeout if retry_timeout is None else retry_timeout,
        )

    def _http_session(self, function_url: str) -> requests.Session:
        """The session for a function: shared by its calls, since it keeps connections and token."""
        key = root_url(function_url)
        with self._sessions_lock:
            if key not in self._sessions:
                self._sessions[key] = self._open_http_session(function_url)
            return self._sessions[key]

    def _open_http_session(self, function_url: str) -> requests.Session:
        try:
            return http_session(
                function_url, audience=self._audience, impersonate=self._impersonate
            )
        except IdentityError as error:
            raise PipesCloudFunctionError(
                f"{function_url} was not called: {error}",
                metadata={"cloud_function_url": function_url},
            ) from error


def log_custom_messages(context: Context, done: dg.PipesClientCompletedInvocation) -> None:
    """Log the custom messages of a call that there is no code in the asset to read.

    Args:
        context: The context of the asset or op.
        done: What `PipesCloudFunctionClient.run` returned.
    """
    for payload in done.get_custom_messages():
        context.log.info(f"The function says: {payload}")


def _insist_on_results(context: StepContext, otherwise: str) -> None:
    """Make the step fail where it leaves out what it has to yield, unless some may be left out.

    An op that only prepares the work on an asset has nothing to yield but its own output.
    """
    assets = assets_of_step(context)
    yields = assets | checks_of_step(context)
    if yields and assets == required_assets(context):
        context.set_requires_typed_event_stream(error_message=otherwise)
