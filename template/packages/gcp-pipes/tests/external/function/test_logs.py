"""What a deployed function logs for Cloud Logging."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from dagster_pipes import encode_param
from google.cloud import storage
from local_cloud.functions import cloud_function
from local_cloud.project import TASKS

EXAMPLE_TASKS = Path(__file__).parents[1] / "example_tasks"
TRACES = [f"{number:032x}" for number in range(1, 9)]
RUN_ID = "11111111-2222-3333-4444-555555555555"

MakeEvent = Callable[..., dict[str, Any]]
Call = Callable[[dict[str, Any], dict[str, str]], int]
ReadLog = Callable[[], list[dict[str, Any]]]


@contextmanager
def deployed(folder: Path) -> Iterator[Call]:
    """Run the function as Google Cloud does, with the tasks in `example_tasks/`.

    Args:
        folder: The folder for the source.
    """
    source = folder / "deployed.py"
    source.write_text(
        f"import tasks\n\ntasks.__path__.append({str(EXAMPLE_TASKS)!r})\n\nfrom main import main\n"
    )
    settings = {
        "FUNCTION_SOURCE": str(source),
        "GOOGLE_CLOUD_PROJECT": "a-project",
        "K_SERVICE": "a-function",
        "LOG_EXECUTION_ID": "true",
        "PYTHONPATH": str(TASKS),
    }
    with cloud_function(settings) as function:

        def call(event: dict[str, Any], headers: dict[str, str]) -> int:
            return requests.post(
                function["FUNCTION_URL"], json=event, headers=headers, timeout=30
            ).status_code

        yield call


@pytest.fixture
def read_log(capfd: pytest.CaptureFixture[str]) -> ReadLog:
    """Reads what was logged since the last call: each line is a JSON object."""
    return lambda: [json.loads(line) for line in "".join(capfd.readouterr()).splitlines()]


def test_records_have_the_trace_and_the_run_of_their_request(
    read_log: ReadLog, make_event: MakeEvent, bucket: storage.Bucket, tmp_path: Path
) -> None:
    def call_with(trace: str) -> int:
        messages = encode_param({"bucket": bucket.name, "key_prefix": trace})
        header = (
            {"X-Cloud-Trace-Context": f"{trace}/1;o=1"}
            if int(trace) % 2
            else {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        )
        return call(
            {**make_event(task="ping"), "DAGSTER_PIPES_MESSAGES": messages},
            {**header, "Function-Execution-Id": trace},
        )

    with deployed(tmp_path) as call, ThreadPoolExecutor(len(TRACES)) as pool:
        statuses = set(pool.map(call_with, TRACES))

    assert statuses == {200}
    entries = read_log()
    for trace in TRACES:
        started, succeeded = (
            entry
            for entry in entries
            if entry["logging.googleapis.com/trace"] == f"projects/a-project/traces/{trace}"
        )
        assert (started["severity"], started["message"]) == ("INFO", "The request started")
        assert succeeded["severity"] == "INFO"
        assert succeeded["message"].startswith("The request succeeded after ")
        labels = succeeded["logging.googleapis.com/labels"]
        assert labels == {"dagster_run_id": RUN_ID, "execution_id": trace}
    assert len(entries) == 2 * len(TRACES)


def test_an_error_is_one_record_with_its_traceback(
    read_log: ReadLog, make_event: MakeEvent, tmp_path: Path
) -> None:
    event = make_event(rows="sesame")

    with deployed(tmp_path) as call:
        status = call(event, {"traceparent": f"00-{TRACES[0]}-00f067aa0ba902b7-01"})

    assert status == 500
    *others, error = read_log()
    assert error["severity"] == "ERROR"
    assert "Traceback (most recent call last):\n" in error["message"]
    assert error["logging.googleapis.com/trace"].endswith(TRACES[0])
    assert error["logging.googleapis.com/labels"]["dagster_run_id"] == RUN_ID
    assert not any("sesame" in json.dumps(entry) for entry in others)


def test_a_rejected_request_is_a_warning_without_its_content(
    read_log: ReadLog, tmp_path: Path
) -> None:
    with deployed(tmp_path) as call:
        status = call({"password": "sesame"}, {"X-Cloud-Trace-Context": "no trace"})

    assert status == 400
    entries = read_log()
    assert [entry["severity"] for entry in entries] == ["INFO", "WARNING"]
    assert entries[0]["logging.googleapis.com/trace"] == "projects/a-project/traces/local"
    assert "sesame" not in json.dumps(entries)
