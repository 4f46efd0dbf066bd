import logging
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceState

import gcp_pipes.telemetry
from gcp_pipes.telemetry import context_of_caller, get_tracer, trace_context, trace_parameters

CALLER = SpanContext(
    trace_id=0x105445AA7843BC8BF206B12000100000,
    span_id=0x00F067AA0BA902B7,
    is_remote=True,
    trace_flags=trace.TraceFlags(1),
    trace_state=TraceState([("vendor", "value")]),
)


@pytest.fixture(autouse=True)
def not_set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OTEL_TRACES_EXPORTER", *gcp_pipes.telemetry._ENDPOINTS):
        monkeypatch.delenv(name, raising=False)
    gcp_pipes.telemetry._set_up.cache_clear()
    yield
    gcp_pipes.telemetry._set_up.cache_clear()


def test_the_parameters_of_a_call_name_its_span() -> None:
    with trace.use_span(NonRecordingSpan(CALLER)):
        parameters = trace_parameters(trace_context())
    assert parameters == {
        "TRACEPARENT": "00-105445aa7843bc8bf206b12000100000-00f067aa0ba902b7-01",
        "TRACESTATE": "vendor=value",
    }

    found = trace.get_current_span(context_of_caller(parameters)).get_span_context()
    assert found == CALLER


@pytest.mark.parametrize("parameters", [{}, {"TRACEPARENT": "nonsense"}, {"TRACEPARENT": None}])
def test_other_parameters_name_none(parameters: dict[str, object]) -> None:
    found = trace.get_current_span(context_of_caller(parameters)).get_span_context()
    assert not found.is_valid


def test_a_current_span_comes_first() -> None:
    own = NonRecordingSpan(SpanContext(trace_id=1, span_id=2, is_remote=False))
    with trace.use_span(own):
        found = trace.get_current_span(context_of_caller({"TRACEPARENT": "nonsense"}))
    assert found is own


def test_without_a_span_there_are_no_parameters() -> None:
    with get_tracer().start_as_current_span("off"):
        assert trace_parameters(trace_context()) == {}


@pytest.mark.parametrize(
    ("variables", "warns"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, True),
        (
            {
                "OTEL_TRACES_EXPORTER": "none",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
            },
            False,
        ),
    ],
)
def test_a_variable_without_the_sdk_is_a_warning_once(
    variables: dict[str, str],
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with get_tracer().start_as_current_span("off") as span:
                assert not span.is_recording()

    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == warns
    assert all("uv add gcp-pipes --extra telemetry" in text for text in texts)
