"""Calls a cloud function from a Dagster asset, and reports its results as those of the asset.

`PipesCloudFunctionClient.run` makes one call: it opens a Pipes session, posts the event with the
Dagster context, and reads messages until the response is received (`call.py`). The response and the
messages then decide whether the step succeeds (`outcome.py`).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakKeyDictionary

import dagster as dg
import requests
from dagster_pipes import PipesContextData, PipesExtras

from gcp_pipes.orchestrator.auth import CredentialsError, http_session
from gcp_pipes.orchestrator.call import (
    Attempt,
    CloudFunctionCaller,
    CloudFunctionMessageHandler,
    ReaderAnywhere,
)
from gcp_pipes.orchestrator.context import (
    Context,
    StepContext,
    assets_of_step,
    build_context_data,
    checks_of_step,
    for_partition,
    required_assets,
)
from gcp_pipes.orchestrator.dagster_internals import TreatAsResourceParam, is_called_directly
from gcp_pipes.orchestrator.event import Event, EventError, serialize
from gcp_pipes.orchestrator.message_reader import PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.outcome import (
    PipesCloudFunctionError,
    describe,
    details,
    find_problem,
    summarize,
)
from gcp_pipes.orchestrator.partitions import (
    PartitionEvent,
    PartitionMessageHandler,
    run_partitions,
)
from gcp_pipes.orchestrator.partitions.fan_out import Report
from gcp_pipes.orchestrator.plain_call import CloudFunctionAnswer, call_plain_function
from gcp_pipes.orchestrator.results import CompletedCall
from gcp_pipes.orchestrator.step_calls import CallHandle, StepCalls, call_identity
from gcp_pipes.orchestrator.urls import root_url

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


class PipesCloudFunctionClient(dg.PipesClient, TreatAsResourceParam):
    """Runs the work of an asset or op in a Google Cloud function.

    One client can make any number of calls, also at the same time. It keeps its connections until
    it is closed.

    Args:
        message_reader: Reads the function's messages.
        context_injector: Sends the Dagster context to the function. The default puts it into the
            event.
        timeout: How long a call may take, in seconds. The function then stops the task, unless its
            own timeout is shorter. If the response is lost, the client waits as long for messages.
        retry_timeout: Seconds during which a call that did not start is retried: one that could not
            connect, or that Google's front end rejected with 429, 500, 502 or 503.
        forward_termination: Whether calls are cancelled if their run is terminated. Otherwise they
            go on.
        implicit_materializations: Whether an asset that the function does not report counts as
            materialized if the call succeeds.
        max_log_lines: How many log lines of a call go into the event log, where each takes about a
            millisecond. Further ones go to the compute logs of the step.
        project: The Google Cloud project of the function, for the link to its logs.
        audience: The audience of identity tokens. The default is the function's root URL.
        impersonate: The e-mail address of a service account to call functions as. The default is
            the account that Dagster runs as.
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
        project: str | None = None,
        audience: str | None = None,
        impersonate: str | None = None,
    ) -> None:
        self._message_reader = message_reader
        self._context_injector = context_injector or PipesCloudFunctionEventContextInjector()
        self._timeout = timeout
        self._retry_timeout = retry_timeout
        self._forward_termination = forward_termination
        self.implicit_materializations = implicit_materializations
        self._max_log_lines = max_log_lines
        self._project = project
        self._audience = audience
        self._impersonate = impersonate
        self._lock = threading.Lock()  # guards the attributes below
        self._sessions: dict[str, requests.Session] = {}
        self._calls: WeakKeyDictionary[StepContext, StepCalls] = WeakKeyDictionary()

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
        """Call the function and wait until it has finished. Its log lines appear while it runs.

        A call that did not start is retried. One that may have started is not: if its response is
        lost, the function's messages say how it ended. If the run is terminated, the call is
        cancelled.

        Args:
            context: The context of the asset, the asset check, or the op.
            function_url: The function's URL. A request to https carries an identity token.
            event: The task's inputs: a JSON object.
            extras: Values for `pipes.extras` in the function.
            run_tags: Names of tags of the run, for `pipes.extras["run_tags"]` in the function.
            timeout: As for the client, for this call.
            retry_timeout: As for the client, for this call.

        Returns:
            What the function reported. Return it from an asset by `.get_materialize_result()`, and
            from an asset check by `.get_asset_check_result()`. Yield several results, or
            observations, by `.get_results()`.

        Raises:
            PipesCloudFunctionError: The event could not be sent, the function could not be called
                or failed, it did not report every asset and check of the step, or messages were
                lost.
        """
        step = context.op_execution_context
        context_data = build_context_data(step, extras=extras, run_tags=run_tags)
        body = self._serialize(event, context_data)
        _require_results(step, _MUST_RETURN_RESULTS)
        attempt = self._make_caller(step, function_url, timeout, retry_timeout).call(
            body,
            context_data,
            lambda: CloudFunctionMessageHandler(step, self._message_reader, self._max_log_lines),
            self._handle(step, function_url, body, context_data, timeout),
        )
        completed = self._complete(step, attempt)
        for observation in attempt.handler.observations:
            step.log_event(observation)
        return completed

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
        The results of a partition are in the event log as soon as its call has finished. A failed
        partition fails the step, after the calls for all other partitions. If the step is retried,
        or the run re-executed from failure, partitions that are materialized are not called for
        again. A run of a single partition is like `run`.

        A check that is not partitioned is evaluated once, for all partitions together.

        Args:
            context: The context of the asset.
            function_url: The function's URL. A request to https carries an identity token.
            event: The task's inputs: a JSON object, or a function that makes it for a partition
                key. That is called in one of the threads that make the calls.
            extras: Values for `pipes.extras` in the function.
            run_tags: Names of tags of the run, for `pipes.extras["run_tags"]` in the function.
            max_in_flight: How many calls may be in flight at the same time. More than the
                function's instances can serve is of no use.
            timeout: As for the client, for each call.
            retry_timeout: As for the client, for each call. It starts again while the function is
                running another call.

        Returns:
            What the asset yields, by `yield from`, which makes the calls.

        Raises:
            PipesCloudFunctionError: `max_in_flight` is less than 1; or, while results are yielded,
                the function could not be called, or partitions failed.
        """
        step = context.op_execution_context
        _require_results(step, _MUST_YIELD_RESULTS)
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
            # A generator: Dagster accepts no other iterator from an asset.
            return (each for each in done.get_results())
        caller = self._make_caller(step, function_url, timeout, retry_timeout)
        context_data = build_context_data(step, extras=extras, run_tags=run_tags)
        reader = self._message_reader
        if isinstance(reader, PipesCloudStorageMessageReader):
            reader = reader.for_many_calls(min(max_in_flight, len(step.partition_keys)))

        def call(key: str, enqueue: Callable[[Report], None]) -> Attempt:
            data = for_partition(step, context_data, key)
            body = self._serialize(make_event(key), data)
            return caller.call(
                body,
                data,
                lambda: PartitionMessageHandler(step, reader, self._max_log_lines, key, enqueue),
                self._handle(step, function_url, body, data, timeout),
            )

        return run_partitions(
            step,
            call,
            cancel=caller.cancel,
            complete=lambda attempt: self._complete(step, attempt),
            max_in_flight=max_in_flight,
        )

    def call(
        self,
        *,
        context: Context,
        function_url: str,
        event: Event,
        timeout: float | None = None,
        retry_timeout: float | None = None,
    ) -> CloudFunctionAnswer:
        """Call a function that knows nothing of Pipes, in any language, and wait for its response.

        A status of 2xx is success. Only a call that cannot have started is retried: one that could
        not connect, or that Google rejected with 429, since no instance was free. If the run is
        terminated, the function goes on.

        Args:
            context: The context of the asset, the asset check, or the op.
            function_url: The function's URL. A request to https carries an identity token.
            event: The body of the request: a JSON object. Nothing is added to it.
            timeout: As for the client, for this call. The function does not learn of it.
            retry_timeout: As for the client, for this call.

        Returns:
            What the function responded. Return it from an asset by `.get_materialize_result()`.

        Raises:
            PipesCloudFunctionError: The event could not be sent, the function could not be called,
                its status is not 2xx, or its response was lost.
        """
        step = context.op_execution_context
        return call_plain_function(
            step,
            self._http_session(function_url),
            function_url,
            self._serialize(event, None),
            timeout=self._timeout if timeout is None else timeout,
            retry_timeout=self._retry_timeout if retry_timeout is None else retry_timeout,
            project=self._project,
        )

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            while self._sessions:
                self._sessions.popitem()[1].close()

    def _serialize(self, event: Event, context_data: PipesContextData | None) -> bytes:
        is_in_body = isinstance(self._context_injector, dg.PipesEnvContextInjector)
        try:
            return serialize(event, context_data if is_in_body else None)
        except EventError as error:
            raise PipesCloudFunctionError(str(error), allow_retries=False) from error

    def _complete(self, context: StepContext, attempt: Attempt) -> CompletedCall:
        """The results of a call; an error if it failed."""
        metadata = describe(attempt, self._project)
        problem = find_problem(
            context,
            attempt,
            no_messages_hint=self._message_reader.no_messages_debug_text(),
            implicit_materializations=self.implicit_materializations,
        )
        if problem:
            raise PipesCloudFunctionError(
                f"{problem}\n\n{summarize(details(attempt))}", metadata=metadata
            )
        implicit = self.implicit_materializations
        return CompletedCall(context, attempt, metadata, implicit_materializations=implicit)

    def _handle(
        self,
        context: StepContext,
        function_url: str,
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
                    function_url=function_url,
                    timeout=self._timeout if timeout is None else timeout,
                )
            calls = self._calls[context]
        return calls.next_call(call_identity(function_url, event, context_data))

    def _make_caller(
        self,
        context: StepContext,
        function_url: str,
        timeout: float | None,
        retry_timeout: float | None,
    ) -> CloudFunctionCaller:
        return CloudFunctionCaller(
            context,
            function_url,
            self._http_session(function_url),
            self._context_injector,
            timeout=self._timeout if timeout is None else timeout,
            retry_timeout=self._retry_timeout if retry_timeout is None else retry_timeout,
            forward_termination=self._forward_termination,
        )

    def _http_session(self, function_url: str) -> requests.Session:
        """The session for a function, with its connections and its token, shared by all calls."""
        key = root_url(function_url)
        try:
            with self._lock:
                if key not in self._sessions:
                    self._sessions[key] = http_session(
                        function_url, audience=self._audience, impersonate=self._impersonate
                    )
                return self._sessions[key]
        except CredentialsError as error:
            raise PipesCloudFunctionError(f"{function_url} was not called: {error}") from error


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
