"""Dagster knows soon whether a function is alive, and a silent task that it was cancelled."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

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


def test_messages_postpone_the_heartbeat(
    materialize: Materialize, reader: PipesCloudStorageMessageReader, writes: FaultProxy
) -> None:
    with serve(TASKS / "main.py", writes.url, HEARTBEAT_INTERVAL="3") as url:
        run = materialize(
            url=url, with_client=PipesCloudFunctionClient(reader), lines=10, pause=0.5
        )

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
    materialize: Materialize, reader: PipesCloudStorageMessageReader, writes: FaultProxy
) -> None:
    writes.fail(respond(503), respond_after(500), cut, cut_after, when=is_heartbeat)
    with serve(TASKS / "main.py", writes.url, HEARTBEAT_INTERVAL="3") as url:
        run = materialize(url=url, with_client=PipesCloudFunctionClient(reader), sleeps=9)

    assert run.success
    assert heartbeats(run) >= 1


def test_the_process_that_stores_heartbeats_is_restarted(
    materialize: Materialize, reader: PipesCloudStorageMessageReader, writes: FaultProxy
) -> None:
    def kill_if_heartbeat(process: psutil.Process) -> bool:
        with suppress(psutil.Error):  # it has ended meanwhile
            if any(argument.endswith("/heartbeat.py") for argument in process.cmdline()):
                process.kill()
                return True
        return False

    def kill() -> None:
        eventually(lambda: any(path.endswith("&fields=name") for _, path in writes.seen))
        killed.extend(filter(kill_if_heartbeat, psutil.Process().children(recursive=True)))

    killed: list[psutil.Process] = []
    killing = threading.Thread(target=kill)
    killing.start()
    with serve(TASKS / "main.py", writes.url, HEARTBEAT_INTERVAL="2") as url:
        run = materialize(url=url, with_client=PipesCloudFunctionClient(reader), sleeps=9)
    killing.join()

    assert killed
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
    writes: FaultProxy,
) -> None:
    client = PipesCloudFunctionClient(reader)
    source = TASKS / "main.py"
    with serve(source, writes.url) as url:

        def end() -> None:
            eventually(lambda: len(writes.seen) > 1)  # the task has logged its line
            time.sleep(1.5)  # the main thread of the server looks for signals each second
            server_at(url).terminate()

        ending = threading.Thread(target=end)
        ending.start()
        run = materialize(url=url, with_client=client, lines=1, sleeps=30)
        ending.join()

    assert not run.success
    assert "The task was interrupted: its instance of the function received SIGTERM" in run.failure
