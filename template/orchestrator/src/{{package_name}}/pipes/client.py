"""Calls a cloud function from a Dagster asset, and reports what it did as the asset's own doing.

One call, from end to end: `PipesCloudFunctionClient.run` opens a Pipes session (the Dagster context
goes into the event, the message reader begins to look for messages), posts the event, waits for the
answer while messages arrive, and then judges by both whether the step has succeeded.
"""

import json
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import dagster as dg
import requests
from dagster_pipes import DagsterPipesError, PipesException, PipesExtras

from .dagster_internals import TreatAsResourceParam, build_external_execution_context_data
from .identity import IdentityError, explain_refusal, http_session, is_loopback, root_url
from .invocation import CloudFunctionAnswer, Outcome, invoke_cloud_function
from .message_handler import CloudFunctionMessageHandler

Context = dg.OpExecutionContext | dg.AssetExecutionContext

_MARGIN = 10.0  # seconds that an answer may come after the function's timeout
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0  # seconds before a function is called again

_MUST_RETURN_RESULTS = (
    "The results of PipesCloudFunctionClient.run were not returned. End the asset with `return "
    "client.run(...).get_materialize_result()`, or with `.get_results()` for several assets."
)
_HINTS = {
    None: "Is FUNCTION_URL the function's own URL, and is the function running?",
    404: "Is FUNCTION_URL the function's own URL, and is the function deployed?",
    429: "The function has no free instance: raise its number of instances or its concurrency.",
    503: "The function could not be started, or its instance died: its logs tell why.",
    504: "The function took longer than its timeout.",
}


class PipesCloudFunctionError(dg.Failure):
    """A call of a cloud function did not do what it was to do. It fails the step."""


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
        timeout: The function's own timeout, in seconds: how long a call may take. Where the
            connection is lost, the messages of the function are awaited for as long.
        retry_timeout: Seconds for which a call is tried again that cannot have started any work:
            no connection could be made, or Google Cloud answered 429 or 503 for the function.
        implicit_materializations: Whether an asset that the function does not report is taken for
            materialized if the call succeeded.
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
        project: str | None = None,
        audience: str | None = None,
        impersonate: str | None = None,
    ) -> None:
        self._message_reader = message_reader
        self._context_injector = context_injector or PipesCloudFunctionEventContextInjector()
        self._timeout = timeout
        self._retry_timeout = retry_timeout
        self._implicit_materializations = implicit_materializations
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
        event: Mapping[str, Any],
        extras: PipesExtras | None = None,
    ) -> dg.PipesClientCompletedInvocation:
        """Call the function and wait until it is done. Its log lines appear while it works.

        A call that cannot have started any work is made again. One that may have is not: if its
        answer is lost, the function's messages decide.

        Args:
            context: The context of the asset or op.
            function_url: The function's URL. A request to https carries an identity token.
            event: The task's inputs: a JSON object.
            extras: More values for the function's Pipes context, there to be found as
                `pipes.extras`.

        Returns:
            What the function reported. Return it from the asset, by `.get_materialize_result()`, or
            by `.get_results()` for several assets.

        Raises:
            PipesCloudFunctionError: The function could not be called, failed, did not say how it
                ended, did not report every asset of the step as materialized, or some of its
                messages were lost.
        """
        _refuse_unusable_event(event)
        if context.has_assets_def:
            context.set_requires_typed_event_stream(error_message=_MUST_RETURN_RESULTS)

        give_up = time.monotonic() + self._retry_timeout
        for attempt, delay in enumerate(_delays(), start=1):
            call = self._call(context, function_url, event, extras)
            if call.has_started or time.monotonic() + delay > give_up:
                break
            context.log.warning(
                f"Attempt {attempt} did not reach the cloud function: {call.answer.error} The next "
                f"one is made in {delay:.1f} s."
            )
            time.sleep(delay)

        metadata = self._describe(call, function_url, attempt)
        if problem := self._find_problem(context, call):
            raise PipesCloudFunctionError(f"{problem}\n\n{_summary(metadata)}", metadata=metadata)
        if call.answer.error:
            context.log.warning(
                f"The answer was lost, but the messages say that all went well: {call.answer.error}"
            )
        return dg.PipesClientCompletedInvocation(call.session, metadata=metadata)

    def close(self) -> None:
        """Close the connections. The client can be used again: it then opens new ones."""
        with self._sessions_lock:
            while self._sessions:
                self._sessions.popitem()[1].close()

    def _call(
        self,
        context: Context,
        function_url: str,
        event: Mapping[str, Any],
        extras: PipesExtras | None,
    ) -> "_Call":
        """Make one attempt, under a key prefix of its own, and read all its messages."""
        started = time.monotonic()
        trace = uuid.uuid4().hex
        handler = CloudFunctionMessageHandler(context, self._message_reader)
        reading_problem = None
        try:
            with self._open_session(context, extras, handler) as session:
                http_session = self._http_session(function_url)
                answer = invoke_cloud_function(
                    http_session,
                    url=function_url,
                    data={**event, **session.get_bootstrap_env_vars()},
                    headers={
                        "traceparent": f"00-{trace}-{uuid.uuid4().hex[:16]}-00",
                        "Function-Execution-Id": session.context_data["run_id"],
                    },
                    timeout=self._timeout + _MARGIN,
                )
                if answer.outcome is Outcome.LOST:
                    self._wait_until_closed(context, handler, answer)
        except IdentityError as error:
            raise PipesCloudFunctionError(
                f"{function_url} was not called: {error}",
                metadata={"cloud_function_url": function_url},
            ) from error
        except DagsterPipesError as error:
            reading_problem = str(error)
        refusal = None
        if answer.status in (401, 403):
            refusal = explain_refusal(http_session, answer.status)
        return _Call(
            session,
            handler,
            answer,
            trace,
            refusal,
            reading_problem,
            time.monotonic() - started,
        )

    @contextmanager
    def _open_session(
        self, context: Context, extras: PipesExtras | None, handler: CloudFunctionMessageHandler
    ) -> Iterator[dg.PipesSession]:
        """As `dagster.open_pipes_session`, which does not let one choose the message handler."""
        context_data = build_external_execution_context_data(context, extras)
        with (
            self._context_injector.inject_context(context_data) as context_params,
            handler.handle_messages() as message_params,
        ):
            yield dg.PipesSession(
                context_data=context_data,
                message_handler=handler,
                context_injector_params=context_params,
                message_reader_params=message_params,
                context=context,
            )

    def _http_session(self, function_url: str) -> requests.Session:
        """The session for a function: shared by its calls, since it keeps connections and token."""
        key = root_url(function_url)
        with self._sessions_lock:
            if key not in self._sessions:
                self._sessions[key] = http_session(
                    function_url, audience=self._audience, impersonate=self._impersonate
                )
            return self._sessions[key]

    def _wait_until_closed(
        self, context: Context, handler: CloudFunctionMessageHandler, answer: CloudFunctionAnswer
    ) -> None:
        """Give the function the rest of its time to say by messages what its answer did not."""
        patience = max(self._timeout + _MARGIN - answer.seconds, _MARGIN)
        if not handler.closed.is_set():
            context.log.warning(
                f"The answer of the cloud function was lost after {answer.seconds:.1f} s, while it "
                f"may be running: {answer.error} Its messages are awaited for up to "
                f"{patience:.0f} s; it is not called again."
            )
        handler.closed.wait(patience)

    def _find_problem(self, context: Context, call: "_Call") -> str | None:
        """Why the step fails, or None if the call did all that it was to do."""
        failure = _find_failure(call)
        if call.reading_problem is not None:
            failure = failure or "Messages of the cloud function were lost."
            return f"{failure}\n\n{call.reading_problem}"
        return failure or self._find_omission(context, call.handler)

    def _find_omission(self, context: Context, handler: CloudFunctionMessageHandler) -> str | None:
        """What the function should have said, and did not."""
        if not handler.received_opened_message:
            return (
                "The cloud function answered, but no message came. "
                f"{self._message_reader.no_messages_debug_text()}"
            )
        if not handler.received_closed_message:
            return (
                "The cloud function answered, but its messages end without the one that says how "
                "it ended. Use `with open_pipes(...)` there."
            )
        missing = [] if self._implicit_materializations else _unreported_assets(context, handler)
        if missing:
            return (
                f"The cloud function did not report {', '.join(missing)} as materialized. Call "
                "`pipes.report_asset_materialization` in the task."
            )
        return None

    def _describe(
        self, call: "_Call", function_url: str, attempt: int
    ) -> dict[str, dg.MetadataValue]:
        """What is worth knowing of a call, however it ended."""
        values: dict[str, dg.MetadataValue] = {
            "cloud_function_url": dg.MetadataValue.url(function_url),
            "cloud_function_attempts": dg.MetadataValue.int(attempt),
            "cloud_function_seconds": dg.MetadataValue.float(round(call.answer.seconds, 3)),
            "cloud_function_total_seconds": dg.MetadataValue.float(round(call.seconds, 3)),
            "cloud_function_messages": dg.MetadataValue.int(call.handler.message_count),
            "cloud_function_chunks": dg.MetadataValue.int(call.handler.chunk_count),
            "cloud_function_trace": dg.MetadataValue.text(call.trace),
        }
        if call.answer.status is not None:
            values["cloud_function_status"] = dg.MetadataValue.int(call.answer.status)
        place = call.session.message_reader_params
        if "bucket" in place and "key_prefix" in place:
            values["cloud_function_prefix"] = dg.MetadataValue.path(
                f"gs://{place['bucket']}/{place['key_prefix']}/"
            )
        if self._project is not None and not is_loopback(function_url):
            values["cloud_function_logs"] = dg.MetadataValue.url(
                logs_url(self._project, call.trace)
            )
        return values


@dataclass(frozen=True)
class _Call:
    """One attempt to call the function, after all its messages have been read.

    Attributes:
        trace: The trace that the request belongs to, and the function's logs of it.
        refusal: Why the function has turned the caller away, or None.
        reading_problem: What is wrong with the messages, or None.
        seconds: How long it took, with the reading of the last messages.
    """

    session: dg.PipesSession
    handler: CloudFunctionMessageHandler
    answer: CloudFunctionAnswer
    trace: str
    refusal: str | None
    reading_problem: str | None
    seconds: float

    @property
    def has_started(self) -> bool:
        """Whether work may have been done. The function says `opened` before it does any."""
        return (
            self.answer.outcome is not Outcome.NOT_STARTED
            or self.handler.received_opened_message
            or self.reading_problem is not None
        )


def _find_failure(call: _Call) -> str | None:
    """What went wrong, by the function's own account or by its answer."""
    handler, answer = call.handler, call.answer
    if handler.exception is not None:
        traceback = format_pipes_exception(handler.exception)
        return f"The cloud function raised an exception.\n\n{traceback}"
    if answer.outcome is Outcome.LOST:
        if handler.received_closed_message:
            return None
        return (
            f"The cloud function did not answer: {answer.error} Nor do its messages say how it "
            "ended. It may have done its work, all or in part: see its logs."
        )
    if answer.error is not None:
        status = f"answered {answer.status}" if answer.status else "was not reached"
        hint = _HINTS.get(answer.status, "Its logs may tell more.")
        return f"The cloud function {status}: {answer.error} {call.refusal or hint}"
    return None


def logs_url(project: str, trace: str) -> str:
    """The page of Cloud Logging with what the function logged in one trace."""
    query = quote(f'trace="projects/{project}/traces/{trace}"', safe="")
    return (
        f"https://console.cloud.google.com/logs/query;query={query}"
        f"?{urlencode({'project': project})}"
    )


def format_pipes_exception(exception: PipesException) -> str:
    """The exception as Python prints it, with what led to it first."""
    traceback = "".join(
        ["Traceback (most recent call last):\n", *exception["stack"], exception["message"]]
    )
    if cause := exception["cause"]:
        relation = "The above exception was the direct cause of the following exception:"
        return f"{format_pipes_exception(cause)}\n{relation}\n\n{traceback}"
    if context := exception["context"]:
        relation = "During handling of the above exception, another exception occurred:"
        return f"{format_pipes_exception(context)}\n{relation}\n\n{traceback}"
    return traceback


def _delays() -> Iterator[float]:
    """Seconds to wait before each further attempt: longer and longer, and never in step."""
    delay = _FIRST_DELAY
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311  # nothing to keep secret
        delay = min(2 * delay, _LONGEST_DELAY)


def _refuse_unusable_event(event: Mapping[str, Any]) -> None:
    for name, value in event.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise PipesCloudFunctionError(
                f"The event must be a JSON object, and its input {name!r} is no JSON: {error}.",
                allow_retries=False,
            ) from error


def _summary(metadata: Mapping[str, dg.MetadataValue]) -> str:
    return "\n".join(
        f"{name.removeprefix('cloud_function_')}: {value.value}" for name, value in metadata.items()
    )


def _unreported_assets(context: Context, handler: CloudFunctionMessageHandler) -> list[str]:
    if not context.has_assets_def:
        return []
    reported = {
        result.asset_key
        for result in handler.get_reported_results()
        if isinstance(result, dg.MaterializeResult)
    }
    return sorted(key.to_user_string() for key in context.selected_asset_keys - reported)
