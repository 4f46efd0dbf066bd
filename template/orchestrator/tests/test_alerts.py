"""The sensor that posts failed runs to a webhook."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from gcp_pipes.orchestrator.outcome import LOGS_SUFFIX

LOGS = "https://console.cloud.google.com/logs/query;query=trace"


@contextmanager
def webhook(status: int) -> Iterator[tuple[str, list[Any]]]:
    """A web server that responds with a status: its URL, and the bodies that it received."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a-secret", bodies
        finally:
            server.shutdown()
            thread.join()


Alert = Callable[..., None]


@pytest.fixture
def alert(definitions: dg.Definitions) -> Alert:
    """Fails a run, and lets the sensor handle it."""

    @dg.asset
    def people() -> None:
        raise dg.Failure(
            "The task failed: no luck\n\nMore",
            metadata={f"call{LOGS_SUFFIX}": dg.MetadataValue.url(LOGS)},
        )

    def run(*, is_retried: bool = False) -> None:
        settings = {
            "telemetry": {"enabled": False},
            "run_retries": {"enabled": is_retried, "max_retries": 1},
        }
        with dg.DagsterInstance.ephemeral(settings=settings) as instance:
            result = dg.materialize([people], instance=instance, raise_on_error=False)
            failed = instance.get_run_by_id(result.run_id)
            assert failed is not None
            sensor = definitions.resolve_sensor_def("failed_runs")
            context = dg.build_run_status_sensor_context(
                sensor_name="failed_runs",
                dagster_event=result.get_run_failure_event(),
                dagster_instance=instance,
                dagster_run=failed,
            ).for_run_failure()
            sensor(context)

    return run


def test_a_failed_run_is_posted(alert: Alert, monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook(200) as (url, bodies):
        monkeypatch.setenv("ALERT_WEBHOOK", url)
        alert()

    [body] = bodies
    first, second = body["text"].split("\n")
    assert first.startswith("Run ")
    assert first.endswith(" failed")
    assert second == f"people: The task failed: no luck (<{LOGS}|logs>)"


def test_a_run_that_is_executed_again_is_not_posted(
    alert: Alert, monkeypatch: pytest.MonkeyPatch
) -> None:
    with webhook(200) as (url, bodies):
        monkeypatch.setenv("ALERT_WEBHOOK", url)
        alert(is_retried=True)

    assert bodies == []


def test_a_webhook_that_fails_is_an_error_without_its_url(
    alert: Alert, monkeypatch: pytest.MonkeyPatch
) -> None:
    with webhook(404) as (url, _):
        monkeypatch.setenv("ALERT_WEBHOOK", url)
        with pytest.raises(dg.Failure) as error:
            alert()

    assert "The webhook could not be called: HTTPError" in str(error.value)
    assert "a-secret" not in str(error.value)


def test_a_missing_webhook_is_an_error(alert: Alert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALERT_WEBHOOK", raising=False)
    with pytest.raises(dg.Failure, match="ALERT_WEBHOOK is not set"):
        alert()


def test_the_sensor_is_off_until_it_is_started(definitions: dg.Definitions) -> None:
    sensor = definitions.resolve_sensor_def("failed_runs")

    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
