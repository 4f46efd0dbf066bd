"""Dagster knows soon whether a function is alive, and a silent task that it was cancelled."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping

import psutil
import pytest
from conftest import (
    Materialize,
    Run,
    eventually,
    serve,
    server_at,
)
from faults import (
    FaultProxy,
    Request,
    Response,
    cut,
    cut_after,
    fault_proxy,
    is_heartbeat,
    respond,
    respond_after,
)
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from google.cloud import storage
from local_cloud.project import TASKS

INTERVAL = 1.0  # seconds


@pytest.fixture
def beating(writes: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy of a function with an interval of a second between heartbeats."""
    with (
        serve(TASKS / "main.py", writes.url, HEARTBEAT_INTERVAL=str(INTERVAL)) as url,
        fault_proxy(url) as proxy,
    ):
        yield proxy


def heartbeats(run: Run) -> int:
    """How many heartbeats were stored for a call."""
    bucket, _, key_prefix = run.call["prefix"].removeprefix("gs://").partition("/")
    return len(list(storage.Client().list_blobs(bucket, prefix=f"{key_prefix}heartbeats/")))


@pytest.mark.parametrize("silence", ["sleeps", "holds_the_gil"])
def test_a_silent_task_is_alive(
    silence: str, materialize: Materialize, beating: FaultProxy
) -> None:
    run = materialize(url=beating.url, **{silence: 4.5})

    assert run.success
    assert heartbeats(run) in (3, 4)  # one may be late


def test_messages_postpone_the_heartbeat(materialize: Materialize, beating: FaultProxy) -> None:
    run = materialize(url=beating.url, lines=15, pause=0.2)

    assert run.success
    assert heartbeats(run) == 0


def test_a_function_that_dies_silently_fails_the_call(
    materialize: Materialize, beating: FaultProxy
) -> None:
    started = time.monotonic()

    run = materialize(url=beating.url, die=True, lines=1)

    assert not run.success
    assert "The cloud function has died" in run.failure
    assert time.monotonic() - started < 10


def hang(request: Request) -> Response:
    """Keep the connection open after the server has cut it."""
    response = request.forward()
    time.sleep(60)
    return response


def test_a_function_that_dies_while_its_connection_stays_open_fails_the_call(
    materialize: Materialize, beating: FaultProxy
) -> None:
    beating.fail(hang)
    started = time.monotonic()

    run = materialize(url=beating.url, die=True, lines=1)

    assert not run.success
    assert "The cloud function has died" in run.failure
    assert time.monotonic() - started < 10


def test_heartbeats_that_fail_for_a_while_do_no_harm(
    materialize: Materialize, beating: FaultProxy, writes: FaultProxy
) -> None:
    writes.fail(respond(503), respond_after(500), cut, cut_after, when=is_heartbeat)

    run = materialize(url=beating.url, sleeps=4.5)

    assert run.success
    assert heartbeats(run) >= 1


def test_the_process_that_stores_heartbeats_is_restarted(
    materialize: Materialize, beating: FaultProxy
) -> None:
    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            if any(argument.endswith("/heartbeat.py") for argument in process.cmdline()):
                process.kill()

    killing = threading.Timer(1.5, kill)
    killing.start()
    run = materialize(url=beating.url, sleeps=4.5)
    killing.join()

    assert run.success
    assert heartbeats(run) >= 2


def test_a_silent_task_is_cancelled(interrupt: Callable[..., str], beating: FaultProxy) -> None:
    printed = interrupt(beating.url, "thing line 0", lines=1, sleeps=30)

    assert "TaskCancelledError" in printed
    eventually(lambda: beating.in_flight == 0, 1)
    assert beating.in_flight == 0


def test_a_call_goes_on_if_termination_is_not_forwarded(
    interrupt: Callable[..., str], beating: FaultProxy
) -> None:
    printed = interrupt(beating.url, "thing line 0", forward_termination=False, lines=1, sleeps=30)

    assert "nterrupt" in printed
    assert "TaskCancelledError" not in printed
    assert len(beating.seen) == 1
    assert beating.in_flight == 1


def test_a_task_whose_instance_ends_says_so(
    materialize: Materialize,
    reader: PipesCloudStorageMessageReader,
    emulator: Mapping[str, str],
) -> None:
    client = PipesCloudFunctionClient(reader)
    source = TASKS / "main.py"
    with serve(source, emulator["STORAGE_EMULATOR_HOST"]) as url, fault_proxy(url) as calls:

        def end() -> None:
            eventually(lambda: calls.in_flight == 1)
            time.sleep(1.5)  # the task is running
            server_at(url).terminate()

        ending = threading.Thread(target=end)
        ending.start()
        run = materialize(url=calls.url, with_client=client, sleeps=30)
        ending.join()

    assert not run.success
    assert "The task was interrupted: its instance of the function received SIGTERM" in run.failure
