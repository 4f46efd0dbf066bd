"""Nothing is lost, and nothing is silently green: one test a fault."""

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
from conftest import Materialize, eventually, lines, run_asset, serve
from faults import (
    FaultProxy,
    LateRequest,
    Request,
    Response,
    change_body,
    cut,
    cut_after,
    cut_meanwhile,
    is_upload,
    respond,
    respond_after,
)
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from google.cloud import storage
from local_cloud.processes import free_port
from local_cloud.project import TASKS

# The reader


def test_a_second_call_on_one_reader_gets_its_own_messages(materialize: Materialize) -> None:
    runs = [materialize(name, lines=3) for name in ("first", "second", "third")]

    assert [run.success for run in runs] == [True] * 3
    assert [run.lines for run in runs] == [lines(3, name) for name in ("first", "second", "third")]


def test_thirty_chunks_that_wait_when_the_call_returns_are_all_read(
    materialize: Materialize, reads: FaultProxy, calls: FaultProxy
) -> None:
    reads.fail_always(respond(404), when=lambda request: calls.in_flight > 0)

    run = materialize(lines=30, size=1_100_000, pause=0.1)

    assert run.success
    assert int(run.call["messages"].split()[2]) >= 30
    assert [line.rstrip("x") for line in run.lines] == lines(30)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_read_that_fails_temporarily_is_retried(
    status: int, materialize: Materialize, reads: FaultProxy
) -> None:
    reads.fail(respond(status), respond(status))

    run = materialize(lines=3)

    assert run.success
    assert run.lines == lines(3)


def test_a_read_whose_connection_is_cut_is_retried(
    materialize: Materialize, reads: FaultProxy
) -> None:
    reads.fail(cut, cut_after)

    run = materialize(lines=3)

    assert run.success
    assert run.lines == lines(3)


@pytest.mark.parametrize("status", [403, 503])
def test_a_read_that_keeps_failing_fails_the_step_and_is_reported_at_once(
    status: int, materialize: Materialize, reads: FaultProxy
) -> None:
    reads.fail_always(respond(status, b'{"error": {"message": "no luck"}}'))

    run = materialize(lines=3)

    assert not run.success
    assert "Could not read gs://" in run.failure
    assert "/1.json: " in run.failure
    assert "roles/storage.objectViewer" in run.failure
    assert run.reports


def test_a_read_that_is_forbidden_until_the_role_is_granted_loses_nothing(
    materialize: Materialize, reads: FaultProxy, calls: FaultProxy
) -> None:
    reads.fail_always(respond(403), when=lambda request: calls.in_flight > 0)

    run = materialize(lines=10, pause=0.1)

    assert run.success
    assert run.lines == lines(10)
    assert "roles/storage.objectViewer" in run.reports[0]


def test_a_missing_chunk_fails_the_step_and_the_others_are_read(
    materialize: Materialize, reads: FaultProxy
) -> None:
    reads.fail_always(respond(404), when=lambda request: "2.json" in request.path)

    run = materialize(lines=6, pause=0.3)

    assert not run.success
    assert "/2.json is missing" in run.failure
    assert "Messages 2 to " in run.failure
    assert lines(6)[-1] in run.lines
    assert len(run.lines) < 6


def test_a_truncated_chunk_fails_the_step_and_the_rest_is_read(
    materialize: Materialize, reads: FaultProxy
) -> None:
    reads.fail_always(
        change_body(lambda body: body[: len(body) // 2]),
        when=lambda request: "2.json" in request.path,
    )

    run = materialize(lines=6, pause=0.3)

    assert not run.success
    assert "Could not parse a message in gs://" in run.failure
    assert "/2.json: " in run.failure
    assert lines(6)[-1] in run.lines


def test_a_chunk_that_is_truncated_between_two_messages_fails_the_step(
    materialize: Materialize, reads: FaultProxy
) -> None:
    reads.fail_always(
        change_body(lambda body: body.split(b"\n")[0]),
        when=lambda request: "2.json" in request.path,
    )

    run = materialize(lines=6, pause=0.15)

    assert not run.success
    assert "are missing: the next one is in" in run.failure


def test_a_chunk_that_is_not_text_fails_the_step(
    materialize: Materialize, reads: FaultProxy
) -> None:
    reads.fail_always(
        change_body(lambda body: b"\xff\xfe"), when=lambda request: "1.json" in request.path
    )

    run = materialize(lines=3)

    assert not run.success
    assert "/1.json is not text" in run.failure
    assert run.lines == lines(3)


def test_a_duplicated_chunk_fails_the_step(materialize: Materialize, reads: FaultProxy) -> None:
    chunks: list[bytes] = []

    def keep(body: bytes) -> bytes:
        chunks.append(body)
        return body

    reads.fail_always(change_body(keep), when=lambda request: "2.json" in request.path)
    reads.fail_always(
        change_body(lambda body: chunks[-1]), when=lambda request: "3.json" in request.path
    )

    run = materialize(lines=10, pause=0.2)

    assert not run.success
    assert "is duplicated" in run.failure
    assert run.lines.count(lines(1)[0]) == 1


# The writer


def test_an_upload_that_fails_once_is_retried(materialize: Materialize, writes: FaultProxy) -> None:
    writes.fail(respond(503), respond(429), cut, when=is_upload)

    run = materialize(lines=3)

    assert run.success
    assert run.lines == lines(3)


def test_an_upload_whose_response_is_lost_is_stored_once(
    materialize: Materialize, writes: FaultProxy
) -> None:
    writes.fail(cut_after, respond_after(503), when=is_upload)

    run = materialize(lines=3)

    assert run.success
    assert run.lines == lines(3)


def test_no_message_is_lost_if_a_cancellation_takes_the_name_of_a_chunk_whose_upload_failed(
    materialize: Materialize, writes: FaultProxy, emulator: Mapping[str, str]
) -> None:
    def take_name(request: Request) -> Response:
        bucket = storage.Client().bucket(emulator["MESSAGES_BUCKET"])
        chunks = [blob for blob in bucket.list_blobs() if blob.name.endswith("/1.json")]
        opened = max(chunks, key=lambda blob: blob.time_created)
        cancelling = {"method": "log", "params": {"message": "cancelled", "level": "WARNING"}}
        blob = bucket.blob(opened.name.replace("/1.json", "/2.json"))
        blob.upload_from_string(json.dumps(cancelling))
        return Response(503)

    writes.fail(lambda request: request.forward(), take_name, when=is_upload)

    run = materialize(lines=3)

    assert run.success
    assert run.lines == lines(3)
    assert ("WARNING", "cancelled") in run.logged


def test_a_call_is_made_again_if_the_response_to_its_first_upload_is_lost(
    materialize: Materialize, writes: FaultProxy
) -> None:
    writes.fail(cut_after, when=is_upload)

    run = materialize(lines=3)

    assert run.success
    assert run.lines == lines(3)
    assert run.call["attempts"] == "2"
    assert "ERROR" not in dict(run.logged)


def test_a_late_attempt_whose_first_upload_fails_does_not_start(
    materialize: Materialize, calls: FaultProxy, writes: FaultProxy
) -> None:
    late = LateRequest(503)
    calls.fail(late)
    run = materialize(lines=3)
    writes.fail(respond(503), when=is_upload)

    late.arrive()

    assert run.success
    assert late.response is not None
    assert late.response.status == 503
    assert b"not known whether a retry has replaced this attempt" in late.response.body


def test_uploads_that_all_fail_make_the_request_fail(
    materialize: Materialize, writes: FaultProxy, calls: FaultProxy
) -> None:
    writes.fail_always(respond(403), when=is_upload)

    run = materialize(lines=3)

    assert not run.success
    assert "responded 500: MessagesNotStoredError: Messages to Dagster could not" in run.failure
    assert "roles/storage.objectCreator" in run.failure
    assert len(calls.seen) == 1


def test_uploads_that_start_to_fail_end_the_task(
    materialize: Materialize, writes: FaultProxy
) -> None:
    uploads: list[Request] = []

    def is_late(request: Request) -> bool:
        if is_upload(request):
            uploads.append(request)
        return is_upload(request) and len(uploads) > 3

    writes.fail_always(respond(403), when=is_late)

    run = materialize(lines=100, pause=0.1)

    assert not run.success
    assert "MessagesNotStoredError" in run.failure
    assert 0 < len(run.lines) < 100


def test_uploads_that_are_unavailable_for_long_make_the_request_fail(
    materialize: Materialize, writes: FaultProxy, reader: PipesCloudStorageMessageReader
) -> None:
    writes.fail_always(respond(503), when=is_upload)

    run = materialize(
        lines=3, with_client=PipesCloudFunctionClient(reader, timeout=120, retry_timeout=1)
    )

    assert not run.success
    assert "MessagesNotStoredError" in run.failure


def test_a_messages_bucket_that_does_not_exist_is_named(
    materialize: Materialize,
    reader: PipesCloudStorageMessageReader,
    emulator: Mapping[str, str],
) -> None:
    reader.bucket = "no-such-bucket"

    with serve(
        TASKS / "main.py",
        emulator["STORAGE_EMULATOR_HOST"],
        MESSAGES_BUCKET="no-such-bucket",
    ) as url:
        run = materialize(url=url, lines=3)

    assert not run.success
    assert "could not be stored in gs://no-such-bucket/" in run.failure
    assert "Check that the bucket exists" in run.failure


# The task


def test_a_metadata_value_of_a_wrong_type_fails_the_step(materialize: Materialize) -> None:
    run = materialize(lines=3, metadata={"rows": {"type": "table", "raw_value": "many"}})

    assert not run.success
    first_line = run.failure.splitlines()[0]
    assert "what the task reported by report_asset_materialization: " in first_line
    assert "'rows' is not of the type 'table'; it is 'many'." in first_line
    assert ("ERROR", run.failure.split("\n\n")[0]) in run.logged
    assert run.lines == lines(3)


def test_a_task_that_raises_fails_the_step_with_its_traceback(materialize: Materialize) -> None:
    run = materialize(lines=3, error="no more people")

    assert not run.success
    assert "ValueError: no more people" in run.failure
    assert "KeyError: 'what came first'" in run.failure
    assert "During handling of the above exception" in run.failure
    assert "scripted.py" in run.failure
    assert run.lines == lines(3)


def test_results_that_are_not_returned_fail_the_step(
    client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> None:
        client.run(context=context, function_url=calls.url, event={"task": "scripted"})

    run = run_asset(thing)

    assert not run.success
    assert "were not returned" in run.failure


def test_a_task_that_reports_nothing_fails_the_step(materialize: Materialize) -> None:
    run = materialize(lines=3, report=False)

    assert not run.success
    assert "did not report thing as materialized" in run.failure


def test_a_client_can_allow_implicit_materializations(
    materialize: Materialize, reader: PipesCloudStorageMessageReader
) -> None:
    client = PipesCloudFunctionClient(reader, implicit_materializations=True)

    assert materialize(lines=3, report=False, with_client=client).success


def test_a_function_process_that_dies_fails_the_step_without_a_retry(
    materialize: Materialize, calls: FaultProxy
) -> None:
    run = materialize(lines=3, die=True)

    assert not run.success
    assert "The cloud function has died: for " in run.failure
    assert run.lines == lines(3)
    assert len(calls.seen) == 2  # the other one cancels the call, which may be alive after all


def test_the_death_of_a_function_is_known_also_at_the_end_of_its_timeout(
    materialize: Materialize, reader: PipesCloudStorageMessageReader
) -> None:
    client = PipesCloudFunctionClient(reader, timeout=2.5)

    assert "The cloud function has died: for " in materialize(die=True, with_client=client).failure


def test_log_records_and_warnings_reach_the_run_of_their_request(
    materialize: Materialize,
) -> None:
    for _ in range(2):
        run = materialize(warnings=["rows are old"], library_logs=["could not read"])

        assert run.success
        assert ("ERROR", "could not read") in run.logged
        [warning] = [message for level, message in run.logged if level == "WARNING"]
        assert "UserWarning: rows are old" in warning


def test_a_task_that_takes_too_long_is_an_exception_in_dagster(
    materialize: Materialize, emulator: Mapping[str, str]
) -> None:
    with serve(
        TASKS / "main.py",
        emulator["STORAGE_EMULATOR_HOST"],
        CLOUD_RUN_TIMEOUT_SECONDS="8",
    ) as url:
        run = materialize(url=url, lines=100, pause=0.1)

    assert not run.success
    assert "TaskTimeoutError" in run.failure
    assert 0 < len(run.lines) < 100


# The call


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_call_that_the_front_end_rejected_is_retried(
    status: int, materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail(respond(status, b"Rate exceeded."), respond(status))

    run = materialize(lines=3)

    assert run.success
    assert run.lines == lines(3)
    assert run.call["attempts"] == "3"


def test_a_call_that_is_always_rejected_fails_the_step(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail_always(respond(429, b"Rate exceeded."))

    run = materialize(lines=3)

    assert not run.success
    assert "responded 429: Rate exceeded." in run.failure
    assert "attempts: " in run.failure


def test_a_call_that_google_has_no_instance_for_says_so(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail_always(respond(500, b"<html><title>Server Error</title></html>"))

    run = materialize(lines=3)

    assert not run.success
    assert "responded 500: Internal Server Error." in run.failure
    assert "The function could not start, or its instance crashed: see its logs." in run.failure
    assert len(calls.seen) > 2


def test_an_error_of_the_function_itself_is_not_retried(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail(respond(500, b'{"error": "no luck"}'))

    run = materialize(lines=3)

    assert "responded 500: no luck" in run.failure
    assert len(calls.seen) == 1


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_function_that_had_started_is_not_called_again_after_an_error_of_the_front_end(
    status: int, materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail(respond_after(status))

    run = materialize(lines=3)

    assert not run.success
    assert f"responded {status}" in run.failure
    assert len(calls.seen) == 1
    assert run.lines == lines(3)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_call_that_starts_after_an_error_of_the_front_end_is_followed(
    status: int,
    materialize: Materialize,
    calls: FaultProxy,
    reads: FaultProxy,
    writes: FaultProxy,
) -> None:
    late = LateRequest(status)
    has_stopped_reading = threading.Event()

    def start_when_the_client_looks_again(request: Request) -> Response:
        late.start(writes)
        return request.forward()

    def notice(request: Request) -> bool:
        # Lists the chunks once, when the attempt has ended.
        if "prefix=" in request.path and calls.seen:
            has_stopped_reading.set()
            return False
        return has_stopped_reading.is_set() and request.path.partition("?")[0].endswith("1.json")

    calls.fail(late)
    reads.fail(start_when_the_client_looks_again, when=notice)

    run = materialize(lines=3, pause=0.3)

    assert run.success
    assert run.lines == lines(3)
    assert len(calls.seen) == 1
    assert any(
        f"Google responded {status}, but the function started later" in line
        for _, line in run.logged
    )


def test_a_call_that_arrives_after_its_retry_does_nothing(
    materialize: Materialize, calls: FaultProxy, emulator: Mapping[str, str]
) -> None:
    late = LateRequest(503)
    calls.fail(late)

    run = materialize(lines=3)
    late.arrive()

    assert run.success
    assert run.lines == lines(3)
    assert run.call["attempts"] == "2"
    assert late.response is not None
    assert late.response.status == 500
    assert b"MessagesNotStoredError" in late.response.body


def test_a_retry_of_a_call_that_has_just_started_does_nothing_and_the_call_is_followed(
    materialize: Materialize, calls: FaultProxy, writes: FaultProxy
) -> None:
    late = LateRequest(503)

    def start_late(request: Request) -> Response:
        late.start(writes)
        return request.forward()

    calls.fail(late, start_late)

    run = materialize(lines=8, pause=0.3)

    assert run.success
    assert run.lines == lines(8)
    assert len(calls.seen) == 2
    eventually(lambda: late.response is not None)
    assert late.response is not None
    assert late.response.status == 200


def test_a_409_of_a_retry_that_has_run_its_task_is_not_retried(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail(respond(503), respond_after(409))

    run = materialize(lines=3)

    assert not run.success
    assert "responded 409" in run.failure
    assert run.lines == lines(3)
    assert len(calls.seen) == 2


def test_a_retry_that_dies_after_it_has_blocked_the_first_attempt_is_retried(
    materialize: Materialize, calls: FaultProxy, writes: FaultProxy
) -> None:
    late = LateRequest(503)

    def dies(request: Request) -> Response:
        # It can block the first attempt, and then store nothing.
        writes.fail(lambda upload: upload.forward(), *[respond(403)] * 20, when=is_upload)
        request.forward()
        writes.reset()
        return Response(503)

    calls.fail(late, dies)

    run = materialize(lines=3)
    late.arrive()

    assert run.success
    assert run.lines == lines(3)
    assert run.call["attempts"] == "3"


def test_an_attempt_that_started_before_a_retry_was_rejected_too_is_followed(
    materialize: Materialize, calls: FaultProxy, writes: FaultProxy
) -> None:
    late = LateRequest(503)

    def rejected_while_the_first_starts(request: Request) -> Response:
        late.start(writes)
        return Response(503)

    calls.fail(late, rejected_while_the_first_starts)

    run = materialize(lines=8, pause=0.3)

    assert run.success
    assert run.lines == lines(8)
    assert len(calls.seen) == 2
    eventually(lambda: late.response is not None)


def test_a_function_that_is_not_ready_yet_is_called_again(
    materialize: Materialize, emulator: Mapping[str, str]
) -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(materialize, url=f"http://127.0.0.1:{port}", lines=3)
        time.sleep(1)
        with serve(TASKS / "main.py", emulator["STORAGE_EMULATOR_HOST"], port=port):
            run = running.result(60)

    assert run.success, run.failure
    assert run.lines == lines(3)
    assert int(run.call["attempts"]) > 1


def test_a_function_that_never_starts_fails_the_step(materialize: Materialize) -> None:
    run = materialize(url=f"http://127.0.0.1:{free_port()}", lines=3)

    assert not run.success
    assert "could not be reached: " in run.failure
    assert "Connection refused" in run.failure


def test_a_response_that_is_lost_after_the_work_is_done_changes_nothing(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail(cut_after)

    run = materialize(lines=3)

    assert run.success
    assert run.lines == lines(3)
    assert len(calls.seen) == 1
    assert any("The response was lost (" in message for _, message in run.logged)


def test_a_connection_that_is_cut_while_the_function_works_changes_nothing(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail(cut_meanwhile(0.5))

    run = materialize(lines=10, pause=0.2)

    assert run.success
    assert run.lines == lines(10)
    assert len(calls.seen) == 1


def test_a_connection_that_is_cut_before_the_request_arrives_fails_the_step(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail(cut)

    run = materialize(lines=3)

    assert not run.success
    assert "It may have done all or part of its work" in run.failure
    assert len(calls.seen) == 1


def test_a_connection_that_was_silent_is_not_used_for_another_call(
    materialize: Materialize, calls: FaultProxy
) -> None:
    """The function's server closes it at about that time, and a call on it would be lost."""
    assert materialize(lines=1).success
    before = calls.connections
    time.sleep(1.5)

    assert materialize(lines=1).success

    assert calls.connections == before + 1


def test_a_504_is_decided_by_the_messages(materialize: Materialize, calls: FaultProxy) -> None:
    calls.fail(respond_after(504), respond(504))

    finished, unfinished = materialize(lines=3), materialize(lines=3)

    assert finished.success
    assert finished.lines == lines(3)
    assert not unfinished.success
    assert "The response of the cloud function was lost (" in unfinished.failure
    assert len(calls.seen) == 2


def test_a_plain_request_before_between_and_during_calls_changes_nothing(
    materialize: Materialize, calls: FaultProxy
) -> None:
    def ping() -> int:
        try:
            with urllib.request.urlopen(calls.url, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    statuses = [ping()]
    first = materialize("first", lines=3)
    statuses.append(ping())
    with ThreadPoolExecutor() as pool:
        running = pool.submit(materialize, "second", lines=15, pause=0.1)
        while not running.done():
            time.sleep(0.1)
            statuses.append(ping())
    second = running.result()

    assert len(statuses) > 10
    assert set(statuses) == {400}
    assert (first.lines, second.lines) == (lines(3, "first"), lines(15, "second"))
    assert first.success
    assert second.success


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_reported_as_interrupted_and_its_call_is_cancelled(
    sent: signal.Signals, tmp_path: Path, interrupt: Callable[..., str], calls: FaultProxy
) -> None:
    rest = interrupt(calls.url, "thing line 3", sent=sent, lines=100, pause=0.1)

    deadline = time.monotonic() + 5
    while calls.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert calls.in_flight == 0, rest  # long before it would have ended
    assert "TaskCancelledError" in rest
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        [run] = instance.get_runs()
        assert run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED), rest
        assert instance.get_latest_materialization_event(dg.AssetKey("thing")) is None
    assert "nterrupt" in rest
