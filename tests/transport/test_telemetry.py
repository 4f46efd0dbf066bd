"""Spans of OpenTelemetry: those of Dagster and of the function are one trace."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest
from conftest import environment_without_pytest, run_asset, serve
from gcp_pipes.orchestrator import PipesCloudFunctionClient
from local_cloud.processes import free_port
from local_cloud.project import TASKS
from local_cloud.run_admin import Job, run_admin
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

ERROR = Status.STATUS_CODE_ERROR
CLIENT, SERVER = Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER

# Materializes an asset for each case, as a process that ends: a line of JSON says how.
RUN = """
import json, sys, time
import dagster as dg
from google.cloud import storage
from opentelemetry import trace
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.cloud_run_job_client import PipesCloudRunJobClient

bucket, url, api, cases = sys.argv[1:]
reader = PipesCloudStorageMessageReader(bucket=bucket, client=storage.Client(), interval=0.2)
functions = PipesCloudFunctionClient(reader)
jobs = PipesCloudRunJobClient(
    reader, project="local", region="europe-west4", job="work", endpoint=api
)
tracer = trace.get_tracer("own")
UNSAMPLED = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=True))

def call(context, way, **event):
    event = {"task": "scripted", **event}
    if way == "job":
        return jobs.run(context=context, event=event).get_materialize_result()
    if way == "plain":
        done = functions.call(context=context, function_url=url, event=event, retry_timeout=0)
        return done.get_materialize_result()
    if way == "unsampled":
        with trace.use_span(UNSAMPLED):
            return call(context, "run", **event)
    if way == "parent":
        with tracer.start_as_current_span("parent"):
            return call(context, "run", **event)
    return functions.run(context=context, function_url=url, event=event).get_materialize_result()

for case in json.loads(cases):
    is_many = case["way"] == "partitions"
    def compute(context):
        return call(context, **case)
    def compute_many(context):
        with tracer.start_as_current_span("parent"):
            yield from functions.run_partitions(
                context=context, function_url=url, event={"task": "scripted"}, max_in_flight=3
            )
    thing = dg.asset(
        name="thing",
        partitions_def=dg.StaticPartitionsDefinition(list("abcdef")) if is_many else None,
        backfill_policy=dg.BackfillPolicy.single_run() if is_many else None,
    )(compute_many if is_many else compute)
    range_tag = "dagster/asset_partition_range_"
    ends = {f"{range_tag}start": "a", f"{range_tag}end": "f"}
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        started = time.monotonic()
        result = dg.materialize(
            [thing], instance=instance, raise_on_error=False, tags=ends if is_many else None
        )
        seconds = time.monotonic() - started
        lines = [entry.user_message for entry in instance.all_logs(result.run_id)]
    tables = [
        value.value
        for event in result.get_asset_materialization_events()
        for name, value in event.step_materialization_data.materialization.metadata.items()
        if name.endswith("_call")
    ]
    data = None if result.success else result.failure_data_for_node("thing")
    print("RESULT", json.dumps({
        "success": result.success, "run_id": result.run_id, "seconds": seconds, "lines": lines,
        "tables": tables, "failure": str(data.user_failure_data or data.error) if data else "",
    }), flush=True)
"""


class Collector:
    """Receives spans, and what is called as a function.

    Attributes:
        url: Where it listens.
        spans: The spans, each with the name of its service.
        requests: The headers and the bodies of other requests.
        responds: Unset while it does not respond.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[tuple[str, Span]] = []
        self.requests: list[tuple[Mapping[str, str], dict[str, Any]]] = []
        self.responds = threading.Event()
        self.responds.set()

    def receive(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Keep what a request brings."""
        if path != "/v1/traces":
            self.requests.append((headers, json.loads(body)))
            return
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = attributes(each.resource)["service.name"]
            found = [span for scope in each.scope_spans for span in scope.spans]
            self.spans += [(service, span) for span in found]

    def take(self) -> dict[str, list[tuple[str, Span]]]:
        """The spans that were received since the last time, by the run in the trace."""
        spans, self.spans = self.spans, []
        runs = {
            span.trace_id: run
            for _, span in spans
            if (run := attributes(span).get("dagster.run_id"))
        }
        by_run: dict[str, list[tuple[str, Span]]] = {}
        for service, span in spans:
            by_run.setdefault(str(runs[span.trace_id]), []).append((service, span))
        return by_run


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector, during the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.responds.wait()
            received.receive(self.path, dict(self.headers), body)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}" if self.path != "/v1/traces" else b"\n\x00")

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Collector(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever).start()
        yield received
        server.shutdown()


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span or a resource."""
    found = {}
    for each in of.attributes:
        value = getattr(each.value, each.value.WhichOneof("value"))
        is_list = each.value.HasField("array_value")
        found[each.key] = [item.string_value for item in value.values] if is_list else value
    return found


def exporting(url: str, service: str) -> dict[str, Any]:
    """The variables that turn OpenTelemetry on."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": service}


def run_cases(
    emulator: Mapping[str, str],
    url: str,
    api: str,
    collector: str,
    *cases: dict[str, Any],
    **variables: str,
) -> list[dict[str, Any]]:
    """Materialize an asset for each case, in a process of its own; how that went."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, emulator["MESSAGES_BUCKET"], url, api, json.dumps(cases)],
        env={**environment_without_pytest(), **exporting(collector, "dagster"), **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    lines = done.stdout.splitlines()
    return [json.loads(line.removeprefix("RESULT ")) for line in lines if "RESULT" in line]


def row(result: dict[str, Any], name: str) -> str:
    """A row of the table of a call."""
    [table] = result["tables"]
    [value] = [line.split(" | ")[1] for line in table.splitlines() if f"| {name} |" in line]
    return str(value.removesuffix(" |"))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def function(emulator: Mapping[str, str], collector: Collector) -> Iterator[str]:
    """A function that exports spans; its URL."""
    environment = exporting(collector.url, "function")
    storage_url = emulator["STORAGE_EMULATOR_HOST"]
    with serve(TASKS / "main.py", storage_url, THREADS="10", **environment) as url:
        yield url


def test_a_call_and_its_task_are_one_trace(
    emulator: Mapping[str, str], collector: Collector, function: str
) -> None:
    alone, parent, failed, unsampled, partitions = run_cases(
        *(emulator, function, collector.url, collector.url),
        {"way": "run", "span": "inside"},
        {"way": "parent"},
        {"way": "run", "error": "out of luck"},
        {"way": "unsampled"},
        {"way": "partitions"},
    )
    by_run = collector.take()
    assert len(by_run) == 4  # not the one that is unsampled

    by_name = {span.name: (service, span) for service, span in by_run[alone["run_id"]]}
    service, call = by_name["call thing"]
    assert (service, call.kind, call.parent_span_id) == ("dagster", CLIENT, b"")
    assert call.status.code != ERROR
    assert attributes(call) == {
        "dagster.run_id": alone["run_id"],
        "dagster.job_name": "__ephemeral_asset_job__",
        "dagster.step_key": "thing",
        "dagster.asset_keys": ["thing"],
        "dagster.retry_number": 0,
        "dagster.pipes.attempts": 1,
        "url.full": function,
        "http.response.status_code": 200,
    }
    service, task = by_name["run task"]
    assert (service, task.kind, task.parent_span_id) == ("function", SERVER, call.span_id)
    assert attributes(task) == {
        "dagster.run_id": alone["run_id"],
        "dagster.asset_keys": ["thing"],
        "dagster.retry_number": 0,
    }
    assert by_name["inside"][1].parent_span_id == task.span_id
    assert len(by_name) == 3
    assert {span.trace_id for _, span in by_run[alone["run_id"]]} == {call.trace_id}
    assert row(alone, "trace") == call.trace_id.hex()
    assert f"Cloud function trace: {call.trace_id.hex()}" in alone["lines"]

    by_name = {span.name: (service, span) for service, span in by_run[parent["run_id"]]}
    assert by_name["call thing"][1].parent_span_id == by_name["parent"][1].span_id
    assert by_name["run task"][1].parent_span_id == by_name["call thing"][1].span_id
    assert row(parent, "trace") == by_name["parent"][1].trace_id.hex()

    assert not failed["success"]
    by_name = {span.name: (service, span) for service, span in by_run[failed["run_id"]]}
    call, task = by_name["call thing"][1], by_name["run task"][1]
    assert call.status.code == task.status.code == ERROR
    assert call.status.message == (
        "The cloud function raised an exception: ValueError: out of luck"
    )
    assert task.status.message == "ValueError: out of luck"
    assert attributes(call)["error.type"] == attributes(task)["error.type"] == "ValueError"
    assert [event.name for event in task.events] == ["exception"]

    assert unsampled["success"]
    assert row(unsampled, "trace") == f"{0xABC:032x}"
    assert f"Cloud function trace: {0xABC:032x}" in unsampled["lines"]

    assert partitions["success"]
    spans = by_run[partitions["run_id"]]
    [step] = [span for _, span in spans if span.name == "parent"]
    made, done = (
        {attributes(span)["dagster.partition_key"]: span for _, span in spans if span.kind == kind}
        for kind in (CLIENT, SERVER)
    )
    assert len(spans) == 1 + 6 + 6
    assert sorted(made) == sorted(done) == list("abcdef")
    assert {span.parent_span_id for span in made.values()} == {step.span_id}
    assert all(done[key].parent_span_id == made[key].span_id for key in made)


def test_other_ways_to_call(emulator: Mapping[str, str], collector: Collector) -> None:
    job = Job(
        [str(TASKS / ".venv" / "bin" / "python"), "job.py"],
        directory=TASKS,
        environment={
            "STORAGE_EMULATOR_HOST": emulator["STORAGE_EMULATOR_HOST"],
            **exporting(collector.url, "job"),
        },
    )
    collector.requests.clear()
    cases = {"way": "job"}, {"way": "plain"}
    with run_admin({"work": job}) as admin:
        result, plain = run_cases(emulator, collector.url, admin.url, collector.url, *cases)
    by_run = collector.take()

    assert result["success"], result["failure"]
    spans = dict(by_run[result["run_id"]])
    assert spans["job"].parent_span_id == spans["dagster"].span_id
    assert attributes(spans["dagster"])["faas.invoked_name"].endswith("/jobs/work")

    assert plain["success"], plain["failure"]
    [(headers, event)] = collector.requests
    [(_, span)] = by_run[plain["run_id"]]
    assert event == {"task": "scripted"}
    version, trace, parent, flags = headers["traceparent"].split("-")
    assert (version, trace, parent) == ("00", span.trace_id.hex(), span.span_id.hex())
    assert int(flags, 16) & 1  # it is sampled


def test_a_collector_that_is_down_harms_nothing(
    emulator: Mapping[str, str], collector: Collector, function: str
) -> None:
    refusing = f"http://127.0.0.1:{free_port()}"
    collector.responds.clear()  # for the function
    try:
        first, second = run_cases(emulator, function, "", refusing, {"way": "run"}, {"way": "run"})
    finally:
        collector.responds.set()

    assert first["success"]
    assert second["success"]
    assert first["seconds"] < 10  # two seconds in the function, two in Dagster, and the call
    assert second["seconds"] < first["seconds"]  # it waits for no collector


def test_a_variable_that_opentelemetry_rejects_harms_nothing(
    emulator: Mapping[str, str],
) -> None:
    refusing = f"http://127.0.0.1:{free_port()}"
    wrong: dict[str, Any] = {"OTEL_BSP_MAX_QUEUE_SIZE": "256"}  # less than a batch
    storage_url = emulator["STORAGE_EMULATOR_HOST"]
    with serve(TASKS / "main.py", storage_url, **exporting(refusing, "function"), **wrong) as url:
        [result] = run_cases(emulator, url, "", refusing, {"way": "run"}, **wrong)

    assert result["success"], result["failure"]


def test_without_it_there_is_only_the_header(
    client: PipesCloudFunctionClient, collector: Collector
) -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return client.run(
            context=context, function_url=collector.url, event={}
        ).get_materialize_result()

    collector.requests.clear()
    run_asset(thing)

    [(headers, event)] = collector.requests
    assert headers["traceparent"].endswith("-00")
    assert "TRACEPARENT" not in event
    assert {service for service, _ in collector.spans} <= {"function"}  # of the test above
    assert "opentelemetry.sdk" not in sys.modules
