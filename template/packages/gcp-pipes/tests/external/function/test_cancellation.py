"""Requests that cancel calls, as Dagster sends them when a run is terminated."""

import gc
import sys
import threading
import time
from collections.abc import Callable
from types import GeneratorType
from typing import Any

import pytest
from flask.testing import FlaskClient
from google.cloud import storage

MakeEvent = Callable[..., dict[str, Any]]
ReadMessages = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def cancel(web: FlaskClient, bucket: storage.Bucket, key_prefix: str) -> Callable[..., Any]:
    """Sends a request that cancels the call."""

    def cancel(**changes: Any) -> Any:
        call = {"bucket": bucket.name, "key_prefix": key_prefix, "next_chunk": 1, **changes}
        return web.post("/", json={"DAGSTER_PIPES_CANCEL": [call]})

    return cancel


def test_a_task_is_stopped_when_it_sends_a_message(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages, cancel: Callable[..., Any]
) -> None:
    responses = []
    event = make_event(task="chatty", seconds=0.01, times=3_000)
    call = threading.Thread(target=lambda: responses.append(web.post("/", json=event)))
    call.start()
    while call.is_alive() and not read_messages():
        time.sleep(0.01)

    assert cancel().json == {"status": "cancelled"}
    call.join(10)

    [response] = responses
    assert response.status_code == 500
    messages = read_messages()
    assert messages[-1]["params"]["exception"]["name"] == "TaskCancelledError"
    numbers = [message["number"] for message in messages if "number" in message]
    assert numbers == list(range(1, len(numbers) + 1))  # no message is lost


def test_a_call_that_is_cancelled_before_it_starts_does_not_start(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages, cancel: Callable[..., Any]
) -> None:
    cancel()

    assert web.post("/", json=make_event(rows=3)).status_code == 500
    [message] = read_messages()
    assert message["params"]["message"] == "The function received a request to cancel this call"


def test_a_call_that_cannot_start_leaves_nothing_to_garbage_collection(
    web: FlaskClient, make_event: Callable[..., dict[str, Any]], cancel: Callable[..., Any]
) -> None:
    """Python closes a generator while it collects garbage: to join a thread there is a deadlock."""
    cancel()
    gc.collect()
    gc.disable()
    try:
        assert web.post("/", json=make_event(rows=3)).status_code == 500

        deadline = time.monotonic() + 10
        while uploading() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not uploading()
        suspended = [each for each in gc.get_objects() if isinstance(each, GeneratorType)]
        files = [each.gi_code.co_filename for each in suspended if each.gi_frame is not None]
        assert [file for file in files if "gcp_pipes" in file] == []
    finally:
        gc.enable()


def uploading() -> bool:
    return any(thread.name == "pipes-upload" for thread in threading.enumerate())


@pytest.mark.parametrize(
    "changes",
    [{"bucket": "elsewhere"}, {"key_prefix": None}, {"next_chunk": "1"}, {"next_heartbeat": "1"}],
)
def test_an_invalid_request_to_cancel_is_rejected(
    changes: dict[str, Any], cancel: Callable[..., Any]
) -> None:
    response = cancel(**changes)

    assert response.status_code == 400
    assert "is not a call with messages in gs://" in response.json["error"]


def test_all_other_calls_are_cancelled_if_one_cannot_be(
    web: FlaskClient, bucket: storage.Bucket, key_prefix: str
) -> None:
    for number in range(1, 101):
        bucket.blob(f"{key_prefix}/{number}.json").upload_from_string("")
    calls = [
        {"bucket": bucket.name, "key_prefix": prefix, "next_chunk": 1}
        for prefix in (key_prefix, *(f"{key_prefix}-{number}" for number in range(50)))
    ]

    response = web.post("/", json={"DAGSTER_PIPES_CANCEL": calls})

    assert response.status_code == 409
    assert f"{key_prefix}/1.json and the 99 objects after it exist" in response.get_json()["error"]
    stored = {blob.name for blob in bucket.client.list_blobs(bucket, prefix=f"{key_prefix}-")}
    assert stored == {f"{key_prefix}-{number}/1.json" for number in range(50)}


def test_a_task_is_not_stopped_while_it_acquires_a_lock_of_the_logging_module(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    response = web.post("/", json=make_event(task="locking", DAGSTER_PIPES_TIMEOUT=0.3))

    assert response.status_code == 500
    assert read_messages()[-1]["params"]["exception"]["name"] == "TaskTimeoutError"
    assert not sys.modules["tasks.locking"].locked.locked()
