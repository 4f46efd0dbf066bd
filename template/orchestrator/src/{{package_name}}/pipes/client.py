"""Calls a cloud function from a Dagster asset, and reports what it did as the asset's own doing.

One call, from end to end: `PipesCloudFunctionClient.run` opens a Pipes session (the Dagster context
goes into the event, the message reader begins to look for messages), posts the event, waits for the
answer while messages arrive, and then judges by both whether the step has succeeded.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
import requests
from dagster_pipes import DagsterPipesError, PipesException, PipesExtras

from .dagster_internals import TreatAsResourceParam, build_external_execution_context_data
from .identity import IdentityError, http_session
from .message_handler import CloudFunctionMessageHandler

_CONNECT_TIMEOUT = 10.0  # seconds
_ANSWER_TIMEOUT = 3660.0  # seconds: a little above the 60 minutes that Cloud Run allows a request
_ERROR_TEXT_LIMIT = 2_000  # characters

_MUST_RETURN_RESULTS = (
    "The results of PipesCloudFunctionClient.run were not returned. End the asset with `return "
    "client.run(...).get_materialize_result()`, or with `.get_results()` for several assets."
)
_HINTS = {
    401: "Is FUNCTION_URL the function's own URL? A token is only good for one function.",
    403: "Grant roles/run.invoker on the function to the account that runs Dagster.",
    404: "Is FUNCTION_URL the function's own URL, and is the function deployed?",
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

    Args:
        message_reader: Brings the function's messages back.
        context_injector: Sends the Dagster context to the function; in the event, unless another is
            given.
    """

    def __init__(
        self,
        message_reader: dg.PipesMessageReader,
        context_injector: dg.PipesContextInjector | None = None,
    ) -> None:
        self._message_reader = message_reader
        self._context_injector = context_injector or PipesCloudFunctionEventContextInjector()

    def run(  # type: ignore[override]  # the base class leaves the arguments open
        self,
        *,
        context: dg.OpExecutionContext | dg.AssetExecutionContext,
        function_url: str,
        event: Mapping[str, Any],
        extras: PipesExtras | None = None,
    ) -> dg.PipesClientCompletedInvocation:
        """Call the function and wait until it is done. Its log lines appear while it works.

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
                ended, or did not report every asset of the step as materialized.
        """
        _refuse_unusable_event(event)
        if context.has_assets_def:
            context.set_requires_typed_event_stream(error_message=_MUST_RETURN_RESULTS)

        handler = CloudFunctionMessageHandler(context, self._message_reader)
        try:
            with self._open_session(context, extras, handler) as session:
                answer = invoke_cloud_function(
                    url=function_url, data={**event, **session.get_bootstrap_env_vars()}
                )
        except (DagsterPipesError, IdentityError) as error:
            raise PipesCloudFunctionError(
                str(error), metadata={"cloud_function_url": function_url}
            ) from error

        metadata: dict[str, dg.MetadataValue] = {
            "cloud_function_url": dg.MetadataValue.url(function_url),
            "cloud_function_seconds": dg.MetadataValue.float(round(answer.seconds, 3)),
        }
        if problem := self._find_problem(context, answer, handler):
            raise PipesCloudFunctionError(problem, metadata=metadata)
        return dg.PipesClientCompletedInvocation(session, metadata=metadata)

    @contextmanager
    def _open_session(
        self,
        context: dg.OpExecutionContext | dg.AssetExecutionContext,
        extras: PipesExtras | None,
        handler: CloudFunctionMessageHandler,
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

    def _find_problem(
        self,
        context: dg.OpExecutionContext | dg.AssetExecutionContext,
        answer: "CloudFunctionAnswer",
        handler: CloudFunctionMessageHandler,
    ) -> str | None:
        """Why the step fails, or None if the call did all that it was to do."""
        if handler.exception is not None:
            return (
                "The cloud function raised an exception.\n\n"
                f"{format_pipes_exception(handler.exception)}"
            )
        if answer.status is None:
            return f"The cloud function did not answer: {answer.error}"
        if answer.error is not None:
            return (
                f"The cloud function answered {answer.status}: {answer.error} "
                f"{_HINTS.get(answer.status, 'Its logs may tell more.')}"
            )
        if not handler.received_opened_message:
            return (
                "The cloud function answered, but no message came. "
                f"{self._message_reader.no_messages_debug_text()}"
            )
        if not handler.received_closed_message:
            return (
                f"The cloud function answered, but its messages end after {handler.message_count}, "
                "without the one that says how it ended. Use `with open_pipes(...)` there."
            )
        if missing := _unreported_assets(context, handler):
            return (
                f"The cloud function did not report {', '.join(missing)} as materialized. Call "
                "`pipes.report_asset_materialization` in the task."
            )
        return None


@dataclass(frozen=True)
class CloudFunctionAnswer:
    """How a request to a cloud function ended.

    Attributes:
        status: The HTTP status, or None if there was no answer.
        error: What went wrong, or None for a status of 2xx.
        seconds: How long the request took.
    """

    status: int | None
    error: str | None
    seconds: float


def invoke_cloud_function(*, url: str, data: Mapping[str, Any]) -> CloudFunctionAnswer:
    """Post `data` to the function at `url` as JSON.

    Raises:
        IdentityError: The function wants an identity token, and none can be had.
    """
    started = time.monotonic()
    with http_session(url) as session:
        try:
            response = session.post(url, json=data, timeout=(_CONNECT_TIMEOUT, _ANSWER_TIMEOUT))
        except requests.RequestException as error:
            return CloudFunctionAnswer(None, str(error), time.monotonic() - started)
    error_text = None if response.ok else _error_text(response)
    return CloudFunctionAnswer(response.status_code, error_text, time.monotonic() - started)


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


def _refuse_unusable_event(event: Mapping[str, Any]) -> None:
    for name, value in event.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise PipesCloudFunctionError(
                f"The event must be a JSON object, and its input {name!r} is no JSON: {error}.",
                allow_retries=False,
            ) from error


def _error_text(response: requests.Response) -> str:
    """What the response says is wrong: `error` in its JSON body, or else its text."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:_ERROR_TEXT_LIMIT] or str(response.reason)


def _unreported_assets(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    handler: CloudFunctionMessageHandler,
) -> list[str]:
    if not context.has_assets_def:
        return []
    reported = {
        result.asset_key
        for result in handler.get_reported_results()
        if isinstance(result, dg.MaterializeResult)
    }
    return sorted(key.to_user_string() for key in context.selected_asset_keys - reported)
