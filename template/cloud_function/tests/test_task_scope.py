"""What surrounds a task: its logs reach Dagster, and it ends in time."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from flask.testing import FlaskClient

from gcp_pipes import TaskTimeoutError, deadline

Messages = list[dict[str, Any]]


def test_what_a_library_logs_reaches_dagster(
    web: FlaskClient,
    make_event: Callable[..., dict[str, Any]],
    read_messages: Callable[[], Messages],
) -> None:
    logging.getLogger().setLevel(logging.INFO)  # as the Functions Framework does

    assert web.post("/", json=make_event(task="chatty")).status_code == 200

    logged = [message["params"] for message in read_messages() if message["method"] == "log"]
    assert {"message": "Read 3 rows", "level": "INFO"} in logged
    assert {"message": "Between two levels", "level": "INFO"} in logged
    [error] = [each["message"] for each in logged if each["level"] == "ERROR"]
    assert error.startswith("Could not read\nTraceback")
    assert error.endswith("ValueError: no rows")


def test_a_task_that_takes_too_long_is_stopped_and_dagster_is_told(
    web: FlaskClient,
    make_event: Callable[..., dict[str, Any]],
    read_messages: Callable[[], Messages],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOUD_RUN_TIMEOUT_SECONDS", "1")

    response = web.post("/", json=make_event(task="chatty", seconds=0.8))

    assert response.status_code == 500
    assert read_messages()[-1]["params"]["exception"]["name"] == "TaskTimeoutError"


@pytest.mark.parametrize("seconds", ["0", "-1", "1 minute"])
def test_a_malformed_timeout_is_named(
    seconds: str,
    web: FlaskClient,
    make_event: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOUD_RUN_TIMEOUT_SECONDS", seconds)

    response = web.post("/", json=make_event())

    assert response.json is not None
    assert "CLOUD_RUN_TIMEOUT_SECONDS must be" in response.json["error"]


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    with deadline(0.05):
        pass
    time.sleep(0.1)


def test_a_task_that_catches_every_exception_is_stopped_too() -> None:
    """As Python's logging does, while it writes a line."""

    @deadline(0.2)
    def catch_all() -> None:
        for _ in range(1_000):
            with suppress(Exception):
                time.sleep(0.01)

    with pytest.raises(TaskTimeoutError):
        catch_all()


def test_a_block_that_takes_too_long_is_interrupted() -> None:
    @deadline(0.05)
    def never_end() -> None:
        while True:
            time.sleep(0.01)

    with pytest.raises(TaskTimeoutError, match="Give the function more time"):
        never_end()
