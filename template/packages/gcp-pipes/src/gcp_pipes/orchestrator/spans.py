"""The span of a call: from its first attempt until its last message has been read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dagster_pipes import PipesException
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from gcp_pipes.orchestrator.context import StepContext, assets_of_step
from gcp_pipes.orchestrator.dagster_internals import is_called_directly
from gcp_pipes.telemetry import get_tracer, record_error


@contextmanager
def call_span(
    context: StepContext,
    *,
    target_kind: str,
    target: str,
    partition_key: str | None = None,
    parent: Context | None = None,
) -> Iterator[Span]:
    """A span that is current during the block; it records what the block raises.

    Args:
        context: The context of the step.
        target_kind: What kind of thing `target` is, such as `url`.
        target: What is called.
        partition_key: The partition of the call, if it is one of many in the step.
        parent: The context with its parent, in another thread than the step's.
    """
    step_key = (
        None if is_called_directly(context) else context.get_step_execution_context().step.key
    )
    with get_tracer().start_as_current_span(
        f"call {step_key or target_kind}",
        parent,
        SpanKind.CLIENT,
        record_exception=False,  # it would not record that the run is being terminated
        set_status_on_exception=False,
    ) as span:
        if span.is_recording():
            span.set_attribute({"url": "url.full"}.get(target_kind, "faas.invoked_name"), target)
            span.set_attributes(_of_step(context, step_key, partition_key))
        try:
            yield span
        except BaseException as error:
            record_error(span, error)
            raise


def describe_end(
    span: Span,
    attempts: int,
    details: Mapping[str, str],
    problem: str | None,
    exception: PipesException | None = None,
) -> None:
    """Add to a span how its call ended.

    Args:
        span: The span.
        attempts: How many attempts were made.
        details: What `Ending.details` returns.
        problem: Why the call failed; None if it succeeded.
        exception: What the task raised, or None.
    """
    span.set_attribute("dagster.pipes.attempts", attempts)
    status = details.get("status", "")
    if status.isdecimal():
        span.set_attribute("http.response.status_code", int(status))
    if problem is not None:
        is_error_status = status.isdecimal() and int(status) >= 300
        error = exception["name"] if exception else status if is_error_status else None
        span.set_attribute("error.type", error or "_OTHER")
        span.set_status(StatusCode.ERROR, problem.split("\n")[0])


def _of_step(
    context: StepContext, step_key: str | None, partition_key: str | None
) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "dagster.run_id": context.run_id,
        "dagster.retry_number": context.retry_number,
        "dagster.asset_keys": sorted(key.to_user_string() for key in assets_of_step(context)),
    }
    if step_key is not None:
        attributes |= {"dagster.step_key": step_key, "dagster.job_name": context.job_name}
    if partition_key is None and context.has_partition_key:
        partition_key = context.partition_key
    if partition_key is not None:
        attributes["dagster.partition_key"] = partition_key
    elif context.has_partition_key_range:
        keys = context.partition_key_range
        attributes["dagster.partition_key_range"] = [keys.start, keys.end]
    return attributes
