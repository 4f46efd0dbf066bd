"""Calls a function that knows nothing of Pipes, in any language: its response is the result."""

import json
import math
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import requests

from gcp_pipes.orchestrator.cloud_function import (
    CloudFunctionLauncher,
    PipesCloudFunctionError,
    explain_rejection,
    logs_url,
)
from gcp_pipes.orchestrator.context import StepContext
from gcp_pipes.orchestrator.event import Event, EventError, serialize
from gcp_pipes.orchestrator.http import (
    CloudFunctionResponse,
    invoke_cloud_function,
    trace_headers,
)
from gcp_pipes.orchestrator.launcher import Outcome, retry_delays
from gcp_pipes.orchestrator.outcome import call_metadata, summarize
from gcp_pipes.orchestrator.redaction import redact
from gcp_pipes.orchestrator.spans import call_span, describe_end
from gcp_pipes.telemetry import export_spans, trace_context, trace_id

_WHAT = CloudFunctionLauncher.what
_MOST_VALUES = 100  # of an answer, in metadata
_LONGEST_NAME = 200  # characters of a name in metadata
_LARGEST_VALUE = 10_000  # characters of a value in metadata, as JSON


@dataclass(frozen=True)
class CloudFunctionAnswer:
    """What a function without Pipes responded.

    Attributes:
        value: The body of the response: the value of its JSON; text, if it is not JSON; None, if it
            is empty.
        metadata: The same as metadata, for the event log, and the duration of the call, a table,
            and a link to the function's logs. Of a JSON object, each member is an entry. Values
            whose name is that of a secret are hidden, and long ones are cut.
    """

    value: Any
    metadata: Mapping[str, dg.MetadataValue]

    def get_materialize_result(
        self, asset_key: dg.AssetKey | str | None = None
    ) -> dg.MaterializeResult[None]:
        """The result for an asset to return.

        Args:
            asset_key: The asset. Required if the step has several.
        """
        return dg.MaterializeResult(asset_key=asset_key, metadata=self.metadata)


def call_plain_function(
    context: StepContext,
    http_session: requests.Session,
    function_url: str,
    event: Event,
    *,
    timeout: float,
    retry_timeout: float,
    project: str | None,
) -> CloudFunctionAnswer:
    """Post an event, until the function responds.

    Args:
        context: The context of the step.
        http_session: The session for the function, with its credentials.
        function_url: The function's URL.
        event: The body of the request: a JSON object.
        timeout: How long to wait for the response, in seconds.
        retry_timeout: How long a call that cannot have started is retried, in seconds.
        project: The Google Cloud project of the function, for the link to its logs.

    Raises:
        PipesCloudFunctionError: The event could not be sent, or the response is not 2xx or was
            lost.
    """
    try:
        body = serialize(event, None)
    except EventError as error:
        raise PipesCloudFunctionError(str(error), allow_retries=False) from error
    kind = CloudFunctionLauncher.target_kind
    try:
        with call_span(context, target_kind=kind, target=function_url) as span:
            trace = trace_id() or uuid.uuid4().hex
            response, attempts = _post(
                context,
                http_session,
                function_url,
                body,
                trace_headers(trace, context.run_id, trace_context()),
                timeout=timeout,
                retry_timeout=retry_timeout,
            )
            problem = _find_problem(http_session, response)
            describe_end(span, attempts, response.details(), problem)
    finally:
        export_spans()
    details = {
        "url": function_url,
        **response.details(),
        "attempts": str(attempts),
        "seconds": f"{response.seconds:.3f}",
        "trace": trace,
    }
    logs = logs_url(project, function_url, trace, context.run_id)
    metadata = call_metadata(_WHAT, details, response.seconds, logs)
    if problem:
        raise PipesCloudFunctionError(f"{problem}\n\n{summarize(details)}", metadata=metadata)
    answer = _parse(response.body)
    return CloudFunctionAnswer(answer, {**_as_metadata(answer), **metadata})


def _post(
    context: StepContext,
    http_session: requests.Session,
    function_url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    timeout: float,
    retry_timeout: float,
) -> tuple[CloudFunctionResponse, int]:
    """The last response, and how many attempts were made."""
    started = time.monotonic()
    for attempt, delay in enumerate(retry_delays(retry_timeout / 4), start=1):
        response = invoke_cloud_function(
            http_session, url=function_url, data=body, headers=headers, timeout=timeout
        )
        is_in_time = time.monotonic() + delay <= started + retry_timeout
        if not (_cannot_have_started(response) and is_in_time):
            break
        context.log.warning(
            f"Attempt {attempt} did not reach the {_WHAT}: {response.error} Retrying in "
            f"{delay:.1f} s."
        )
        time.sleep(delay)
    return response, attempt


def _cannot_have_started(response: CloudFunctionResponse) -> bool:
    """Whether a request surely has not reached the function: no connection, or no free instance.

    500, 502 and 503 may come from an instance that has ended in mid-call. With Pipes, the messages
    would say whether it had started.
    """
    return response.outcome is Outcome.NOT_STARTED and not response.may_start_late


def _find_problem(http_session: requests.Session, response: CloudFunctionResponse) -> str | None:
    if response.outcome is Outcome.UNKNOWN:
        return (
            f"The response of the {_WHAT} was lost ({response.error}). It may have done all "
            "or part of its work, so it is not called again: see its logs."
        )
    return explain_rejection(http_session, response).explain(_WHAT)


def _parse(body: bytes) -> Any:
    """The value of JSON, or text; None for an empty body."""
    try:
        return json.loads(body, parse_float=_finite, parse_constant=str) if body else None
    except (ValueError, RecursionError):
        return body.decode("utf-8-sig", errors="replace")


def _finite(text: str) -> float | str:
    """A number; text, if it is too large for one: JSON has no infinity."""
    number = float(text)
    return number if math.isfinite(number) else text


def _as_metadata(answer: Any) -> dict[str, dg.MetadataValue]:
    if answer is None:
        return {}
    values = _printable(answer)
    if not isinstance(values, dict):
        values = {"response": values}
    shown = list(values.items())[:_MOST_VALUES]
    metadata = {_metadata_name(name): _metadata_value(value) for name, value in shown}
    if len(values) > len(shown):
        metadata["response/further values"] = dg.MetadataValue.int(len(values) - len(shown))
    return metadata


def _printable(answer: Any) -> Any:
    """The answer without secrets, and without what no page could show."""
    try:
        text = json.dumps(redact(answer), ensure_ascii=False)
        return json.loads(text.encode(errors="replace"))  # without half of a surrogate pair
    except RecursionError:
        return "JSON that is too deep to be shown"


def _metadata_name(name: str) -> str:
    """The name of a value in metadata. Dagster and the client give some names a meaning."""
    is_reserved = re.match(r"__|dagster/|cloud_function_", name)
    return f"response/{name}"[:_LONGEST_NAME] if is_reserved else name[:_LONGEST_NAME]


def _metadata_value(value: Any) -> dg.MetadataValue:
    """A value of JSON as metadata of its type."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > _LARGEST_VALUE:
        return dg.MetadataValue.text(
            f"{text[:_LARGEST_VALUE]} … (the first {_LARGEST_VALUE} of {len(text)} characters)"
        )
    match value:
        case bool():
            return dg.MetadataValue.bool(value)
        case int():
            return dg.MetadataValue.int(value)
        case float():
            return dg.MetadataValue.float(value)
        case None:
            return dg.MetadataValue.null()
        case str() if re.fullmatch(r"https?://\S+", value):
            return dg.MetadataValue.url(value)
        case str():
            return dg.MetadataValue.text(value)
    return dg.MetadataValue.json(value)
