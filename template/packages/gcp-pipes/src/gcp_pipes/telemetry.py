"""Spans of OpenTelemetry: what Dagster and the work do for one call is one trace.

OpenTelemetry's own environment variables turn them on. Otherwise there are none: its API then does
nothing, and the Cloud Storage client imports it anyway.
"""

import atexit
import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TIME_TO_EXPORT = 2.0  # seconds

# Not the global propagator: it would send baggage, too, which may be private.
_propagator = TraceContextTextMapPropagator()
_logger = logging.getLogger(__name__)
_lock = threading.Lock()  # many threads may ask for the first tracer


def get_tracer() -> trace.Tracer:
    """What makes spans. The first call sets up the SDK, if the environment says so.

    That is late, since the Functions Framework forks after it has loaded the function.
    """
    with _lock:
        _set_up()
    return trace.get_tracer("gcp_pipes")


def trace_id() -> str | None:
    """The ID of the current trace, 32 hexadecimal digits; None without one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def trace_context() -> dict[str, str]:
    """The headers of the current span: `traceparent`, and perhaps `tracestate`; none without one.

    They are those of W3C Trace Context.
    """
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers


def trace_parameters(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers from `trace_context` as parameters, which have the names that variables have.

    A call has them in addition to its headers. Cloud Run replaces the span in those by one of its
    own, which it seldom exports.

    Args:
        headers: The headers.
    """
    return {name.upper(): value for name, value in headers.items()}


def context_of_caller(parameters: Mapping[str, Any]) -> Context:
    """The context for the span of a task: with the span of its caller as the parent, if it has one.

    A current span comes first, such as that of an instrumented server.

    Args:
        parameters: The parameters from `trace_parameters`, among others.
    """
    if trace_id():
        return get_current()
    headers = {name: str(parameters.get(name.upper(), "")) for name in _propagator.fields}
    return _propagator.extract(headers)


def record_error(span: trace.Span, error: BaseException) -> None:
    """Record what a task raised, also if it is no `Exception`.

    Args:
        span: The span of the task.
        error: The exception.
    """
    if not span.is_recording():
        return
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(trace.StatusCode.ERROR, type(error).__name__)
    with suppress(Exception):  # an exception may raise when it is printed
        span.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")
        span.record_exception(error)


def export_spans() -> None:
    """Export the spans that have ended, in at most two seconds.

    After this, the process may end, or have no CPU, as an instance of a function has none after its
    response. Errors are only logged. A collector that does not respond delays one call: until that
    export is over, no other waits.
    """
    _exporter.export()


class _Exporter:
    """Exports what has ended. `force_flush` itself may take a minute, whatever its timeout."""

    def __init__(self) -> None:
        self._late: threading.Thread | None = None  # an export that took too long

    def export(self) -> None:
        flush = getattr(trace.get_tracer_provider(), "force_flush", None)  # only the SDK has it
        if flush is None or (self._late is not None and self._late.is_alive()):
            return
        thread = threading.Thread(target=flush, name="export-spans", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # Python is ending, or there are too many threads
            return
        thread.join(_TIME_TO_EXPORT)
        if thread.is_alive():
            self._late = thread


_exporter = _Exporter()


@functools.cache
def _set_up() -> None:
    """Set up the SDK, unless the program has done so, as `opentelemetry-instrument` does."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER")
    variable = next(filter(os.environ.get, _ENDPOINTS), "OTEL_TRACES_EXPORTER")
    if not (exporter == "otlp" or (not exporter and variable in _ENDPOINTS)):
        return
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _logger.warning(
            f"{variable} is set, but there are no spans ({error}). To install OpenTelemetry's SDK: "
            "uv add gcp-pipes --extra telemetry"
        )
        return
    # It reads all other variables itself. By default, it waits at exit until a collector that does
    # not respond has timed out.
    provider = TracerProvider(shutdown_on_exit=False)
    try:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:  # such as a variable with a value that it does not accept
        _logger.warning(f"OpenTelemetry could not be set up, so there are no spans: {error}")
        return
    trace.set_tracer_provider(provider)
    _export_at_exit(provider.force_flush)


def _export_at_exit(export: Callable[[], object]) -> None:
    """Export what ends after the last call, such as a span around it, for at most two seconds.

    Python starts no thread at its exit, so the thread that does it waits from now on.
    """
    is_ending, is_done = threading.Event(), threading.Event()

    def wait() -> None:
        is_ending.wait()
        export()
        is_done.set()

    def end() -> None:
        is_ending.set()
        is_done.wait(_TIME_TO_EXPORT)

    threading.Thread(target=wait, name="export-spans-at-exit", daemon=True).start()
    atexit.register(end)
