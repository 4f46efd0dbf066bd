"""Requests to the function, its responses, and its messages to Dagster."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster_pipes import DAGSTER_PIPES_MESSAGES_ENV_VAR, decode_param, encode_param
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import tasks
from gcp_pipes.protocol import PROTOCOL_VERSION, REPLACES_PARAMETER

Messages = list[dict[str, Any]]
MakeEvent = Callable[..., dict[str, Any]]
ReadMessages = Callable[[], Messages]


def methods(messages: Messages) -> list[str]:
    return [message["method"] for message in messages]


def error_of(response: TestResponse, status: int = 400) -> str:
    """The error in a response with this status."""
    assert response.status_code == status
    assert response.json is not None
    return str(response.json["error"])


def logged(messages: Messages) -> list[str]:
    return [message["params"]["message"] for message in messages if message["method"] == "log"]


def test_a_call_runs_the_task_and_reports_to_dagster(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    response = web.post("/", json=make_event(rows=3))

    assert (response.status_code, response.json) == (200, {"status": "succeeded"})
    messages = read_messages()
    assert methods(messages)[0] == "opened"
    assert "report_asset_materialization" in methods(messages)
    assert messages[-1]["method"] == "closed"
    assert "exception" not in messages[-1]["params"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Cloud-Trace-Context", "105445aa7843bc8bf206b12000100000/1;o=1"),
        ("traceparent", "00-105445aa7843bc8bf206b12000100000-00f067aa0ba902b7-01"),
    ],
)
def test_the_trace_of_the_request_is_in_the_log(
    header: str, value: str, web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    web.post("/", json=make_event(rows=3), headers={header: value})

    assert "Cloud function trace: 105445aa7843bc8bf206b12000100000" in logged(read_messages())


def test_a_task_can_be_named_in_the_event(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    event = make_event("other", task="counting", rows=3)

    assert web.post("/", json=event).status_code == 200
    [report] = (
        message["params"]
        for message in read_messages()
        if message["method"] == "report_asset_materialization"
    )
    assert report["asset_key"] == "other"
    assert report["metadata"]["rows"]["raw_value"] == 3


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "must be a JSON object"),
        ("no JSON", "must be a JSON object"),
        ("[1, 2]", "must be a JSON object"),
        ("{}", "lacks 'DAGSTER_PIPES_CONTEXT'"),
        ('{"DAGSTER_PIPES_CONTEXT": 1, "DAGSTER_PIPES_MESSAGES": 1}', "parameters are invalid"),
        ('{"DAGSTER_PIPES_CONTEXT": "x", "DAGSTER_PIPES_MESSAGES": "x"}', "are invalid"),
        ('{"DAGSTER_PIPES_PROTOCOL_VERSION": "new"}', "are invalid"),
    ],
)
def test_a_request_that_is_not_from_dagster_is_rejected(
    body: str, error: str, web: FlaskClient
) -> None:
    response = web.post("/", data=body, content_type="application/json")

    assert error in error_of(response)


def test_another_messages_bucket_is_rejected(web: FlaskClient, make_event: MakeEvent) -> None:
    event = {**make_event(), "DAGSTER_PIPES_MESSAGES": encode_param({"bucket": "elsewhere"})}

    response = web.post("/", json=event)

    assert "not to 'elsewhere'" in error_of(response)


def test_an_unknown_task_is_rejected_and_reported_to_dagster(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    response = web.post("/", json=make_event("nonsense"))

    assert "There is no task 'nonsense'. The tasks are: " in error_of(response)
    assert "There is no task 'nonsense'" in read_messages()[-1]["params"]["exception"]["message"]


@pytest.mark.parametrize(
    ("version", "older"),
    [
        (PROTOCOL_VERSION - 1, "The code of Dagster is"),
        (PROTOCOL_VERSION + 1, "The deployed code is"),
    ],
)
def test_a_call_of_another_version_is_rejected_and_reported_to_dagster(
    version: int, older: str, web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    response = web.post("/", json=make_event("people", DAGSTER_PIPES_PROTOCOL_VERSION=version))

    assert f"Dagster has version {version} of the protocol" in error_of(response)
    assert f"{older} older: deploy" in error_of(response)
    opened, closed = read_messages()
    assert opened["params"]["extras"]["protocol_version"] == PROTOCOL_VERSION
    assert closed["params"]["exception"]["name"] == "WrongVersionError"
    assert (
        f"WrongVersionError: Dagster has version {version}"
        in (closed["params"]["exception"]["message"])
    )


def test_a_task_without_run_is_an_error_with_its_name(
    web: FlaskClient, make_event: MakeEvent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "idle.py").write_text("")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])

    response = web.post("/", json=make_event("idle"))

    assert "idle.py has no function run(pipes, event)" in error_of(response)


def test_a_call_for_two_assets_must_name_its_task(web: FlaskClient, make_event: MakeEvent) -> None:
    response = web.post("/", json=make_event("people", "visits"))

    assert "The event lacks `task`" in error_of(response)


def test_a_missing_input_is_an_error_with_its_name(web: FlaskClient, make_event: MakeEvent) -> None:
    response = web.post("/", json=make_event())

    assert "lacks the input 'rows'" in error_of(response)


def test_an_exception_of_a_task_is_sent_to_dagster_with_its_traceback(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    response = web.post("/", json=make_event(rows="many"))

    assert error_of(response, 500).startswith("TypeError: ")
    exception = read_messages()[-1]["params"]["exception"]
    assert exception["name"] == "TypeError"
    assert any("in count" in line for line in exception["stack"])


def test_a_missing_setting_is_an_error_with_its_name(
    web: FlaskClient, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESSAGES_BUCKET")

    response = web.post("/", json=make_event())

    assert "MESSAGES_BUCKET is not set" in error_of(response, 500)


def test_the_instance_still_serves_after_a_request_that_is_not_from_dagster(
    web: FlaskClient, make_event: MakeEvent
) -> None:
    assert web.get("/").status_code == 400
    assert web.post("/", json=make_event(rows=3)).status_code == 200


def test_a_retry_keeps_the_earlier_attempt_from_starting(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    earlier = make_event(rows=3, key_prefix=uuid.uuid4().hex)
    [late] = replaced(earlier)

    retry = web.post("/", json={**make_event(rows=3), REPLACES_PARAMETER: [late]})
    arrives_late = web.post("/", json=earlier)

    assert retry.status_code == 200
    assert methods(read_messages())[-1] == "closed"
    assert "A retry has replaced this attempt" in error_of(arrives_late, 500)


def test_a_retry_of_an_attempt_that_has_started_does_nothing(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    earlier = make_event(rows=3, key_prefix=uuid.uuid4().hex)
    web.post("/", json=earlier)

    retry = web.post("/", json={**make_event(rows=3), REPLACES_PARAMETER: replaced(earlier)})

    assert "An earlier attempt of this call has started" in error_of(retry, 409)
    assert read_messages() == []


def test_a_retry_of_something_else_is_rejected(web: FlaskClient, make_event: MakeEvent) -> None:
    for earlier in (1, [1], [None]):
        response = web.post("/", json={**make_event(rows=3), REPLACES_PARAMETER: earlier})
        assert "The event's Pipes parameters are invalid" in error_of(response)


def replaced(event: dict[str, Any]) -> list[str]:
    """What a retry of an event names."""
    return [decode_param(event[DAGSTER_PIPES_MESSAGES_ENV_VAR])["key_prefix"]]
