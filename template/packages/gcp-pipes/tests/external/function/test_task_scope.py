"""A task sends its logs to Dagster, and is stopped at its deadline."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from flask.testing import FlaskClient
from google.cloud import storage

from gcp_pipes.external import PipesCloudStorageMessageWriter, TaskTimeoutError, run_task

MakeEvent = Callable[..., dict[str, Any]]
ReadMessages = Callable[[], list[dict[str, Any]]]
RunTask = Callable[[Callable[[], None], float], None]


@pytest.fixture
def run_for(client: storage.Client) -> RunTask:
    """Runs a task with a deadline, in seconds."""

    def run_for(task: Callable[[], None], seconds: float) -> None:
        writer = PipesCloudStorageMessageWriter(client)
        run_task(task, seconds=seconds, message_writer=writer)

    return run_for


def test_the_logs_of_a_library_are_sent_to_dagster(
    web: FlaskClient, make_event: MakeEvent, read_messages: ReadMessages
) -> None:
    logging.getLogger().setLevel(logging.INFO)  # as the Functions Framework does

    assert web.post("/", json=make_event(task="chatty")).status_code == 200

    logged = [message["params"] for message in read_messages() if message["method"] == "log"]
    assert {"message": "Read 3 rows", "level": "INFO"} in logged
    assert {"message": "Between two levels", "level": "INFO"} in logged
    [error] = [each["message"] for each in logged if each["level"] == "ERROR"]
    assert error.startswith("Could not read\nTraceback")
    assert error.endswith("ValueError: no rows")


def test_a_task_is_stopped_at_its_deadline_and_this_is_reported_to_dagster(
    web: FlaskClient,
    make_event: MakeEvent,
    read_messages: ReadMessages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOUD_RUN_TIMEOUT_SECONDS", "1")

    response = web.post("/", json=make_event(task="chatty", seconds=0.8))

    assert response.status_code == 500
    assert read_messages()[-1]["params"]["exception"]["name"] == "TaskTimeoutError"


@pytest.mark.parametrize("variable", ["CLOUD_RUN_TIMEOUT_SECONDS", "FUNCTION_TIMEOUT"])
@pytest.mark.parametrize("seconds", ["0", "-1", "1 minute", "inf", "nan"])
def test_an_invalid_timeout_is_an_error_with_its_name(
    seconds: str,
    variable: str,
    web: FlaskClient,
    make_event: MakeEvent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, seconds)

    response = web.post("/", json=make_event())

    assert response.json is not None
    assert f"{variable} must be" in response.json["error"]


@pytest.mark.parametrize("timeout", ["5", 0, -1, True, None])
def test_a_call_with_an_invalid_timeout_is_rejected(
    timeout: object, web: FlaskClient, make_event: MakeEvent
) -> None:
    response = web.post("/", json=make_event(rows=3, DAGSTER_PIPES_TIMEOUT=timeout))

    assert response.status_code == (200 if timeout is None else 400)


DEADLINES = """
from gcp_pipes.external import seconds_left
print(seconds_left({}, function_timeout=3600))
print(seconds_left({}, function_timeout=12))
print(seconds_left({"DAGSTER_PIPES_TIMEOUT": 60}, function_timeout=3600))
print(seconds_left({"DAGSTER_PIPES_TIMEOUT": 60.0}, function_timeout=30))
"""


def test_the_deadline_is_the_timeout_of_the_call_or_before_the_timeout_of_the_function() -> None:
    """In a new process, since the first requests of a process may have waited for its start."""
    printed = subprocess.run(  # noqa: S603
        [sys.executable, "-c", DEADLINES], check=True, capture_output=True, text=True
    ).stdout

    assert [float(line) for line in printed.split()] == pytest.approx([3590, 6, 60, 20], abs=0.1)


def test_a_task_that_ends_before_its_deadline_is_not_stopped(run_for: RunTask) -> None:
    run_for(lambda: None, 0.05)
    time.sleep(0.1)


def test_a_task_that_catches_every_exception_is_stopped(run_for: RunTask) -> None:
    """Python's logging catches every exception, for example."""

    def catch_all() -> None:
        for _ in range(1_000):
            with suppress(Exception):
                time.sleep(0.01)

    with pytest.raises(TaskTimeoutError):
        run_for(catch_all, 0.2)


def test_a_timeout_error_has_the_stack_of_the_task(run_for: RunTask) -> None:
    def never_end() -> None:
        while True:
            time.sleep(0.01)

    with pytest.raises(TaskTimeoutError, match=r"after 0\.05 s") as raised:
        run_for(never_end, 0.05)

    assert "never_end" in [entry.name for entry in raised.traceback]


def test_what_a_task_raises_is_raised_with_its_traceback(run_for: RunTask) -> None:
    def exit_at_once() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as raised:
        run_for(exit_at_once, 5)

    assert raised.traceback[-1].name == "exit_at_once"
