"""The client of Cloud Run jobs: the same rules as for functions."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from conftest import (
    DAYS,
    Partitions,
    Run,
    days,
    eventually,
    lines,
    run_asset,
)
from crashes import Dagster
from dagster.components.testing import create_defs_folder_sandbox
from defs_files import loaded, materialize
from faults import (
    Fault,
    FaultProxy,
    Request,
    cut,
    cut_after,
    fault_proxy,
    respond,
    respond_after,
)
from gcp_pipes.components import CloudRunJobAsset
from gcp_pipes.components.yaml_errors import DefsYamlError
from gcp_pipes.orchestrator import PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.cloud_run_job_client import PipesCloudRunJobClient
from local_cloud.processes import free_port
from local_cloud.project import TASKS
from local_cloud.run_admin import Job, RunAdmin, run_admin

PYTHON = TASKS / ".venv" / "bin" / "python"


@pytest.fixture
def admin(writes: FaultProxy) -> Iterator[RunAdmin]:
    """The API, and a job that runs the tasks of the function."""
    job = Job(
        [str(PYTHON), "job.py"],
        directory=TASKS,
        environment={"STORAGE_EMULATOR_HOST": writes.url, "HEARTBEAT_INTERVAL": "2"},
    )
    with run_admin({"work": job}) as admin:
        yield admin


@pytest.fixture
def api(admin: RunAdmin) -> Iterator[FaultProxy]:
    """The proxy between the client and the API."""
    with fault_proxy(admin.url) as proxy:
        yield proxy


@pytest.fixture
def client(reader: PipesCloudStorageMessageReader, api: FaultProxy) -> PipesCloudRunJobClient:
    """A client with short timeouts."""
    return make_client(reader, api.url)


def make_client(
    reader: PipesCloudStorageMessageReader, url: str, **options: Any
) -> PipesCloudRunJobClient:
    """A client of the stand-in."""
    options = {"timeout": 10, "retry_timeout": 5, **options}
    return PipesCloudRunJobClient(
        reader, project="local", region="europe-west4", endpoint=url, **options
    )


Work = Callable[..., Run]
Tasks = Callable[..., dg.AssetsDefinition]
WhenOpened = Callable[[Callable[[], object]], threading.Thread]


@pytest.fixture
def work(client: PipesCloudRunJobClient) -> Work:
    """Materializes an asset by the job, with the task `scripted` and inputs by name."""

    def work(
        with_client: PipesCloudRunJobClient = client, job: str | None = "work", **event: Any
    ) -> Run:
        @dg.asset(name="thing")
        def working(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return with_client.run(
                context=context, job=job, event={"task": "scripted", **event}
            ).get_materialize_result()

        return run_asset(working)

    return work


def runs(api: FaultProxy) -> int:
    """How often the API was asked to run the job."""
    return sum(path.partition("?")[0].endswith(":run") for _, path in api.seen)


def is_run(request: Request) -> bool:
    """Whether a request runs the job."""
    return request.path.partition("?")[0].endswith(":run")


def is_look(request: Request) -> bool:
    """Whether a request looks at an execution."""
    return request.method == "GET" and "/executions/" in request.path


def is_list(request: Request) -> bool:
    """Whether a request lists the executions."""
    return request.method == "GET" and request.path.partition("?")[0].endswith("/executions")


def test_what_a_job_reports_is_in_the_event_log(work: Work, admin: RunAdmin) -> None:
    run = work(lines=3)

    assert run.success
    assert run.lines == lines(3)
    call = run.metadata["cloud_run_job_call"]
    assert "| job | projects/local/locations/europe-west4/jobs/work |" in call
    assert "| execution | work-00000 |" in call
    assert "| state | succeeded, 1 of 1 tasks succeeded |" in call
    assert "/run/jobs/executions/details/europe-west4/work-00000?project=local" in call
    assert run.metadata["cloud_run_job_logs"].endswith("/executions/work-00000")


def test_an_exception_in_a_job_fails_the_step_with_its_stack(work: Work) -> None:
    run = work(lines="3")

    assert not run.success
    assert "The Cloud Run job raised an exception: TypeError" in run.failure
    assert "scripted.py" in run.failure


def test_a_long_event_goes_through_the_bucket_and_is_deleted(
    work: Work, reader: PipesCloudStorageMessageReader
) -> None:
    events = stored_events(reader)  # of steps that were killed

    run = work(lines=1, ballast=random.Random(1).randbytes(60_000).hex())

    assert run.success
    assert run.lines == lines(1)
    assert stored_events(reader) == events


def stored_events(reader: PipesCloudStorageMessageReader) -> set[str]:
    """The names of the objects with events."""
    return {each.name for each in reader.client.list_blobs(reader.bucket, prefix="events/")}


def test_arguments_replace_those_of_the_job(
    client: PipesCloudRunJobClient, admin: RunAdmin
) -> None:
    @dg.asset(name="thing")
    def working(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return client.run(
            context=context, job="work", event={"task": "scripted"}, args=["--fast"]
        ).get_materialize_result()

    assert run_asset(working).success
    assert [each.args for each in admin.executions] == [["--fast"]]


def test_a_client_runs_its_own_job_if_the_call_names_none(
    reader: PipesCloudStorageMessageReader, api: FaultProxy, work: Work
) -> None:
    assert work(with_client=make_client(reader, api.url, job="work"), job=None).success

    run = work(job=None)

    assert not run.success
    assert "There is no job to run. Name one: `job`." in run.failure


# How an execution ends


def test_an_execution_that_does_not_start_fails_the_step(work: Work, admin: RunAdmin) -> None:
    admin.jobs["work"].problem = "Image 'europe-docker.pkg.dev/a/b/c' not found."

    run = work()

    assert not run.success
    assert "The execution failed: Image 'europe-docker.pkg.dev/a/b/c' not found." in run.failure
    assert len(admin.executions) == 1


def test_an_execution_that_waits_for_longer_than_the_timeout_is_waited_for(
    work: Work, admin: RunAdmin, reader: PipesCloudStorageMessageReader, api: FaultProxy
) -> None:
    admin.jobs["work"].starts_after = 4

    run = work(with_client=make_client(reader, api.url, timeout=2), lines=1)

    assert run.success
    assert len(admin.executions) == 1


def test_a_process_that_exits_without_closing_fails_the_step(work: Work) -> None:
    run = work(lines=1, die=True)

    assert not run.success
    assert "The execution failed: Task work-00000-task0 failed with exit code: 1." in run.failure
    assert run.lines == lines(1)


def test_a_process_that_exits_without_an_error_and_without_closing_fails_the_step(
    work: Work, admin: RunAdmin
) -> None:
    admin.jobs["work"].command = ["true"]

    assert "The Cloud Run job has ended, but sent no message." in work().failure


def test_an_execution_that_is_killed_for_its_memory_fails_the_step(
    work: Work, admin: RunAdmin, when_opened: WhenOpened
) -> None:
    killing = when_opened(lambda: admin.executions[0].tasks[0].send(signal.SIGKILL))

    run = work(lines=1, sleeps=8)

    killing.join()
    assert not run.success
    assert "Memory limit of 512 MiB exceeded." in run.failure


def test_an_execution_that_is_cancelled_from_outside_fails_the_step(
    work: Work, admin: RunAdmin, when_opened: WhenOpened
) -> None:
    cancelling = when_opened(lambda: admin.executions[0].cancel())

    run = work(lines=1, sleeps=8)

    cancelling.join()
    assert not run.success
    assert "TaskInterruptedError" in run.failure


def test_an_execution_that_is_cancelled_before_its_first_message_fails_the_step(
    work: Work, admin: RunAdmin
) -> None:
    admin.jobs["work"].command = ["sleep", "30"]

    def cancel() -> None:
        eventually(lambda: bool(admin.executions), 20)
        admin.executions[0].cancel()

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    run = work()

    cancelling.join()
    assert "The Cloud Run job failed: The execution was cancelled." in run.failure


def test_a_cancelled_process_that_does_not_end_is_killed_after_ten_seconds(
    work: Work, admin: RunAdmin
) -> None:
    admin.jobs["work"].command = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]

    def cancel() -> None:
        eventually(lambda: bool(admin.executions) and bool(admin.executions[0].tasks[0].process))
        admin.executions[0].cancel()

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    run = work()

    cancelling.join()
    assert "The Cloud Run job failed: The execution was cancelled." in run.failure
    eventually(lambda: admin.executions[0].has_ended, 15)
    assert admin.executions[0].tasks[0].process is None


def test_a_state_that_comes_late_is_waited_for(work: Work, admin: RunAdmin) -> None:
    admin.jobs["work"].ends_after = 6

    run = work(lines=1)

    assert run.success
    assert "| state | succeeded, 1 of 1 tasks succeeded |" in run.metadata["cloud_run_job_call"]


def test_a_task_that_takes_too_long_is_stopped_in_the_job(
    work: Work, reader: PipesCloudStorageMessageReader, api: FaultProxy
) -> None:
    run = work(with_client=make_client(reader, api.url, timeout=2), lines=100, pause=0.1)

    assert not run.success
    assert "TaskTimeoutError: The task timed out after" in run.failure


def test_a_job_that_stops_without_ending_counts_as_dead(
    work: Work, admin: RunAdmin, when_opened: WhenOpened
) -> None:
    stopping = when_opened(lambda: admin.executions[0].tasks[0].send(signal.SIGSTOP))

    run = work(lines=1, sleeps=60)

    stopping.join()
    assert not run.success
    assert "The Cloud Run job has died: for " in run.failure
    assert admin.executions[0].is_cancelled


# Cloud Run starts a task again


@pytest.fixture
def ledgered(
    reader: PipesCloudStorageMessageReader, api: FaultProxy, tmp_path: Path
) -> Callable[..., tuple[Run, list[str]]]:
    """Runs the task `ledgered` by the job; also returns the states of its executions."""
    client = make_client(reader, api.url, retry_timeout=30)

    def ledgered(**event: Any) -> tuple[Run, list[str]]:
        ledger = tmp_path / "ledger"
        ledger.touch()
        event = {"task": "ledgered", "ledger": str(ledger), "lines": 1, "pause": 0.1, **event}

        @dg.asset(name="thing")
        def working(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return client.run(context=context, job="work", event=event).get_materialize_result()

        run = run_asset(working)
        states = {each[1]: each[2] for each in map(json.loads, ledger.read_text().splitlines())}
        return run, list(states.values())

    return ledgered


Ledgered = Callable[..., tuple[Run, list[str]]]


def test_a_task_that_cloud_run_starts_again_counts(ledgered: Ledgered, admin: RunAdmin) -> None:
    admin.jobs["work"].max_retries = 2

    run, states = ledgered(failures=2)

    assert run.success
    assert states == ["failed", "failed", "ended"]
    assert len(admin.executions) == 1


def test_a_task_that_cloud_run_starts_again_after_it_has_died_counts(
    ledgered: Ledgered, admin: RunAdmin
) -> None:
    admin.jobs["work"].max_retries = 1

    run, states = ledgered(deaths=1)

    assert run.success
    assert states == ["started", "ended"]
    assert "was started again, and not by Dagster" in " ".join(text for _, text in run.logged)


def test_each_of_several_tasks_is_started_again(
    tasks: Tasks, partitions: Partitions, admin: RunAdmin, tmp_path: Path
) -> None:
    admin.jobs["work"].max_retries = 1
    (tmp_path / "ledger").touch()
    keys = days(3)
    event = {"ledger": str(tmp_path / "ledger"), "lines": 1, "pause": 0.1, "failures": 1}

    assert partitions.run(tasks(**event, task="ledgered"), *keys)

    assert partitions.materialized() == dict.fromkeys(keys, 1)
    [execution] = admin.executions
    assert [task.retries for task in execution.tasks] == [1, 1, 1]


def test_a_task_that_fails_each_time_fails_the_step(ledgered: Ledgered, admin: RunAdmin) -> None:
    admin.jobs["work"].max_retries = 1

    run, states = ledgered(failures=5)

    assert "ValueError: " in run.failure
    assert states == ["failed", "failed"]


def test_a_task_that_cloud_run_starts_again_before_it_has_opened_pipes_counts(
    ledgered: Ledgered, admin: RunAdmin
) -> None:
    admin.jobs["work"].max_retries = 1
    program = 'test "$CLOUD_RUN_TASK_ATTEMPT" = 1 || exit 3; exec "$@"'
    admin.jobs["work"].command = ["sh", "-c", program, "-", *admin.jobs["work"].command]

    run, states = ledgered()

    assert run.success
    assert states == ["ended"]


def test_a_task_that_was_replaced_does_nothing_if_cloud_run_starts_it_again(
    ledgered: Ledgered, api: FaultProxy, admin: RunAdmin
) -> None:
    late = replace(admin.jobs["work"], max_retries=1, starts_after=14)
    admin.jobs["work"], prompt = late, admin.jobs["work"]
    api.fail(respond_after(503), when=is_run)
    api.fail_always(respond(503), when=is_list)

    def start_soon() -> None:
        eventually(lambda: len(admin.executions) == 1)
        admin.jobs["work"] = prompt

    starting = threading.Thread(target=start_soon)
    starting.start()
    run, states = ledgered()

    starting.join()
    assert run.success
    eventually(lambda: all(each.has_ended for each in admin.executions), 30)
    assert admin.executions[0].tasks[0].retries == 1
    assert states == ["ended"]


# The API


@pytest.mark.parametrize("status", [409, 429])
def test_a_request_that_the_api_rejects_is_sent_again(
    status: int, work: Work, api: FaultProxy, admin: RunAdmin
) -> None:
    api.fail(respond(status), when=is_run)

    run = work(lines=3)

    assert run.success
    assert runs(api) == 2
    assert len(admin.executions) == 1


@pytest.mark.parametrize("fault", [cut_after, respond_after(500), respond_after(503)])
def test_an_execution_whose_response_is_lost_is_found(
    fault: Fault, work: Work, api: FaultProxy, admin: RunAdmin
) -> None:
    api.fail(fault, when=is_run)

    run = work(lines=3)

    assert run.success
    assert run.lines == lines(3)
    assert runs(api) == 1
    assert len(admin.executions) == 1


@pytest.mark.parametrize("fault", [cut, respond(500), respond(503)])
def test_a_request_that_did_not_arrive_is_sent_again(
    fault: Fault,
    work: Work,
    api: FaultProxy,
    admin: RunAdmin,
    client: PipesCloudRunJobClient,
    reader: PipesCloudStorageMessageReader,
) -> None:
    api.fail(fault, when=is_run)

    run = work(with_client=make_client(reader, api.url, retry_timeout=30), lines=3)

    assert run.success
    assert runs(api) == 2
    assert len(admin.executions) == 1


@pytest.mark.parametrize(
    ("status", "hint"), [(403, "roles/run.developer"), (404, "Check the name of the job")]
)
def test_a_request_that_is_refused_fails_the_step_at_once(
    status: int, hint: str, work: Work, api: FaultProxy
) -> None:
    body = json.dumps({"error": {"code": status, "message": "No."}}).encode()
    api.fail_always(respond(status, body), when=is_run)

    run = work()

    assert f"The Cloud Run Admin API responded {status}: No." in run.failure
    assert hint in run.failure
    assert runs(api) == 1


def test_a_job_that_does_not_exist_fails_the_step(work: Work) -> None:
    assert "responded 404: Resource " in work(job="other").failure


def test_an_execution_that_is_not_found_at_first_is_followed(work: Work, api: FaultProxy) -> None:
    api.fail(respond(404), when=is_look)

    run = work(lines=3, pause=0.5)

    assert run.success
    assert run.lines == lines(3)


@pytest.mark.parametrize("fault", [respond(429), respond(403), respond(503), cut])
def test_an_api_that_fails_while_the_task_runs_does_no_harm(
    fault: Fault, work: Work, api: FaultProxy
) -> None:
    api.fail(*[fault] * 4, when=is_look)

    run = work(lines=3, pause=0.5)

    assert run.success
    assert run.lines == lines(3)


def test_an_execution_that_is_deleted_fails_the_step(
    work: Work, admin: RunAdmin, when_opened: WhenOpened
) -> None:
    def delete() -> None:
        admin.executions.pop().stop()

    deleting = when_opened(delete)
    run = work(lines=1, sleeps=8)

    deleting.join()
    assert "The execution was deleted." in run.failure


def test_an_api_that_cannot_be_reached_fails_the_step(
    work: Work, reader: PipesCloudStorageMessageReader
) -> None:
    client = make_client(reader, f"http://127.0.0.1:{free_port()}", retry_timeout=1)

    assert "The Cloud Run job failed: " in work(with_client=client).failure


# Cancellation, and crashes of Dagster


def test_a_terminated_run_cancels_its_execution(
    client: PipesCloudRunJobClient, admin: RunAdmin, when_opened: WhenOpened
) -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return client.run(
            context=context, job="work", event={"task": "scripted", "lines": 80, "pause": 0.1}
        ).get_materialize_result()

    terminating = when_opened(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(BaseException) as raised:  # noqa: PT011  # Dagster's own is private
        dg.materialize([thing])

    terminating.join()
    assert "Interrupt" in type(raised.value).__name__
    eventually(lambda: admin.executions[0].has_ended, 5)
    assert admin.executions[0].state == "cancelled"


def test_a_step_that_is_killed_follows_its_execution(
    dagster: Dagster, admin: RunAdmin, api: FaultProxy
) -> None:
    dagster.url = api.url
    run_id = dagster.launch("one", job="work", lines=8, pause=1.0)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(run_id) == {f"one line {number}": 1 for number in range(8)}
    assert len(admin.executions) == 1


def test_a_step_that_is_killed_before_its_execution_starts_follows_it(
    dagster: Dagster, admin: RunAdmin, api: FaultProxy
) -> None:
    admin.jobs["work"].starts_after = 10
    dagster.url = api.url
    run_id = dagster.launch("one", job="work", lines=2, pause=0.5)
    eventually(lambda: len(admin.executions) == 1)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert len(admin.executions) == 1


def test_a_step_that_is_killed_runs_the_job_again_if_its_execution_has_failed(
    dagster: Dagster, admin: RunAdmin, api: FaultProxy
) -> None:
    dagster.url = api.url
    run_id = dagster.launch("one", job="work", lines=3, pause=1.0, failures=1)
    eventually(lambda: dagster.states() == ["started"])

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["failed", "ended"]
    assert len(admin.executions) == 2


# Several tasks


@pytest.fixture
def tasks(client: PipesCloudRunJobClient) -> Tasks:
    """Defines an asset whose partitions are tasks of one execution, with inputs by name."""

    def tasks(with_client: PipesCloudRunJobClient = client, **event: Any) -> dg.AssetsDefinition:
        @dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
        def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from with_client.run_partitions(
                context=context, job="work", event={"task": "scripted", **event}
            )

        return thing

    return tasks


def test_partitions_are_the_tasks_of_one_execution(
    tasks: Tasks, partitions: Partitions, admin: RunAdmin, reader: PipesCloudStorageMessageReader
) -> None:
    admin.jobs["work"].parallelism = 3
    keys = days(8)
    events = stored_events(reader)  # of steps that were killed

    assert partitions.run(tasks(lines=1, metadata={"size": 3}), *keys)

    assert partitions.materialized() == dict.fromkeys(keys, 1)
    [execution] = admin.executions
    eventually(lambda: execution.has_ended)
    assert [task.state for task in execution.tasks] == ["succeeded"] * 8
    assert f"[{keys[5]}] thing line 0" in partitions.logged()
    assert partitions.materialization(keys[5]).metadata["size"].value == 3
    assert stored_events(reader) == events


def test_a_task_that_fails_is_named_and_the_others_are_materialized(
    tasks: Tasks, partitions: Partitions, admin: RunAdmin
) -> None:
    keys = days(4)
    assert not partitions.run(tasks(lines=1, failing_partitions=[keys[2]]), *keys)

    assert partitions.materialized() == {key: 1 for key in keys if key != keys[2]}
    assert f"{keys[2]}: ValueError: {keys[2]} is out of luck" in partitions.failure().description


def test_a_task_that_is_killed_is_named(
    tasks: Tasks, partitions: Partitions, admin: RunAdmin, when_opened: WhenOpened
) -> None:
    keys = days(3)
    killing = when_opened(lambda: admin.executions[0].tasks[1].send(signal.SIGKILL))

    assert not partitions.run(tasks(lines=1, sleeps=6), *keys)

    killing.join()
    [lost] = set(keys) - partitions.materialized().keys()
    failure = partitions.failure().description
    assert "1 of 3 partitions failed" in failure
    assert lost in failure
    assert "Memory limit of 512 MiB exceeded." in "".join(partitions.logged())


def test_a_task_that_counts_as_dead_does_not_cancel_the_others_and_is_cancelled_at_last(
    tasks: Tasks, partitions: Partitions, admin: RunAdmin, when_opened: WhenOpened
) -> None:
    keys = days(3)
    stopping = when_opened(lambda: admin.executions[0].tasks[1].send(signal.SIGSTOP))

    assert not partitions.run(tasks(lines=1, sleeps=8), *keys)

    stopping.join()
    [lost] = set(keys) - partitions.materialized().keys()
    assert f"{lost}: The Cloud Run job has died" in partitions.failure().description
    eventually(lambda: admin.executions[0].is_cancelled)
    assert admin.executions[0].is_cancelled


@pytest.mark.parametrize("status", [403, 503])
def test_tasks_that_have_closed_succeed_if_the_api_does_not_list_tasks(
    status: int, tasks: Tasks, partitions: Partitions, api: FaultProxy
) -> None:
    api.fail_always(respond(status), when=lambda request: "/tasks" in request.path)
    keys = days(3)

    assert not partitions.run(tasks(lines=1, failing_partitions=[keys[1]]), *keys)

    assert partitions.materialized() == {keys[0]: 1, keys[2]: 1}
    assert f"{keys[1]}: ValueError" in partitions.failure().description


def test_a_number_of_tasks_that_is_none_fails_the_step(several: Work) -> None:
    assert "task_count must be 1 or more; it is 0." in several(count=0).failure


def test_partitions_whose_execution_cannot_be_started_fail(
    tasks: Tasks, partitions: Partitions, api: FaultProxy
) -> None:
    api.fail_always(respond(403), when=is_run)

    assert not partitions.run(tasks(), *days(3))

    assert "responded 403" in partitions.failure().description
    assert runs(api) == 1


def test_partitions_whose_execution_is_rejected_at_first_are_one_execution(
    tasks: Tasks, partitions: Partitions, api: FaultProxy, admin: RunAdmin
) -> None:
    api.fail(respond(429), when=is_run)

    assert partitions.run(tasks(), *days(6))

    assert [len(each.tasks) for each in admin.executions] == [6]


def test_a_terminated_run_cancels_all_its_tasks(
    dagster: Dagster, admin: RunAdmin, api: FaultProxy
) -> None:
    admin.jobs["work"].parallelism = 2
    dagster.url = api.url
    run_id = dagster.launch("many", *days(6), job="work", lines=20, pause=1.0)
    eventually(lambda: len(dagster.states()) == 2)

    dagster.instance.run_launcher.terminate(run_id)

    eventually(lambda: admin.executions[0].has_ended, 10)
    assert admin.executions[0].state == "cancelled"
    assert dagster.wait(run_id) in ("CANCELED", "FAILURE")


def test_a_step_that_is_killed_follows_all_its_tasks(
    dagster: Dagster, admin: RunAdmin, api: FaultProxy
) -> None:
    admin.jobs["work"].parallelism = 3
    dagster.url = api.url
    keys = days(9)
    run_id = dagster.launch("many", *keys, job="work", lines=2, pause=1.5)
    eventually(lambda: len(dagster.states()) >= 5)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"] * 9
    assert dagster.materializations("many") == dict.fromkeys(keys, 1)
    assert len(admin.executions) == 1


@pytest.fixture
def several(client: PipesCloudRunJobClient) -> Work:
    """Materializes an asset by three tasks `sharded`, of which the first one reports it."""

    def several(count: int = 3, **event: Any) -> Run:
        @dg.asset(name="thing")
        def working(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return client.run(
                context=context, job="work", event={"task": "sharded", **event}, task_count=count
            ).get_materialize_result()

        return run_asset(working)

    return several


def test_several_tasks_make_one_result(several: Work, admin: RunAdmin) -> None:
    run = several()

    assert run.success
    assert run.metadata["count"] == 3
    logged = [text for _, text in run.logged if "shard" in text]
    assert sorted(logged) == [f"[task {index}] thing shard {index} of 3" for index in range(3)]
    [execution] = admin.executions
    assert len(execution.tasks) == 3


def test_one_task_of_three_that_fails_is_named(several: Work) -> None:
    run = several(failing=[1])

    assert not run.success
    assert "Task 1: The Cloud Run job raised an exception: ValueError: no luck" in run.failure
    assert "Task 0" not in run.failure


def test_one_task_of_three_that_is_lost_is_named(several: Work) -> None:
    run = several(dying=[2])

    assert not run.success
    assert "Task 2: " in run.failure
    assert "Task 1" not in run.failure


def test_an_asset_that_two_tasks_report_fails_the_step(several: Work) -> None:
    run = several(reporting=[0, 2])

    assert not run.success
    assert "Task 2 reported thing, as task 0 did." in run.failure


def test_an_asset_that_no_task_reports_fails_the_step(several: Work) -> None:
    run = several(reporting=[])

    assert "The Cloud Run job did not report thing as materialized." in run.failure


@pytest.fixture
def when_opened(admin: RunAdmin, writes: FaultProxy) -> WhenOpened:
    """Acts in a thread, once all tasks of an execution have stored their first messages."""

    def when_opened(act: Callable[[], object]) -> threading.Thread:
        def wait() -> None:
            eventually(lambda: bool(admin.executions), 20)
            count = len(admin.executions[0].tasks)
            eventually(lambda: sum("/upload/" in path for _, path in writes.seen) >= count, 20)
            time.sleep(1.0)
            act()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    return when_opened


# The component

ONE = """\
  assets:
    - key: thing
  task: sharded
  job: work
  timeout: 10
"""


@pytest.fixture
def component_resources(client: PipesCloudRunJobClient) -> dict[str, Any]:
    """The resources of a project with a job."""
    return {"settings": SimpleNamespace(lake_uri="/lake"), "pipes_job_client": client}


def test_an_asset_of_the_component_can_have_several_tasks(
    component_resources: dict[str, Any], partitions: Partitions, admin: RunAdmin
) -> None:
    with loaded(f"{ONE}  task_count: 3\n", CloudRunJobAsset) as (_, definitions):
        result = materialize(definitions, component_resources, partitions.instance)

    assert result.success
    [execution] = admin.executions
    assert len(execution.tasks) == 3
    [event] = result.get_asset_materialization_events()
    assert event.step_materialization_data.materialization.metadata["count"].value == 3


def test_the_partitions_of_an_asset_of_the_component_are_tasks_of_one_execution(
    component_resources: dict[str, Any], partitions: Partitions, admin: RunAdmin
) -> None:
    attributes = """\
  assets:
    - key: thing
      partitions_def: { type: daily, start_date: "2024-01-01" }
  task: scripted
  job: work
"""
    with loaded(attributes, CloudRunJobAsset) as (_, definitions):
        result = materialize(
            definitions,
            component_resources,
            partitions.instance,
            tags={
                "dagster/asset_partition_range_start": "2024-01-01",
                "dagster/asset_partition_range_end": "2024-01-03",
            },
        )

    assert result.success
    assert [len(each.tasks) for each in admin.executions] == [3]
    made = {event.partition for event in result.get_asset_materialization_events()}
    assert made == {f"2024-01-0{day}" for day in range(1, 4)}


def test_every_field_of_the_component_is_described_and_has_an_example() -> None:
    fields = CloudRunJobAsset.model().model_json_schema()["properties"]

    assert {"assets", "task", "job", "timeout", "task_count"} <= fields.keys()
    for name, field in fields.items():
        assert field.get("description"), name
        assert field.get("examples"), name


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        (
            ONE.replace("work", "My Job"),
            ":7: attributes.job must be the name of a job, of lowercase letters, digits and "
            "hyphens; it is 'My Job'.",
        ),
        (
            ONE.replace("10", "0"),
            ":8: attributes.timeout must be a number of seconds, more than 0; it is 0.",
        ),
        (
            f"{ONE}  task_count: 0\n",
            ":9: attributes.task_count must be a number from 1 to 10000; it is 0.",
        ),
        (
            ONE.replace(
                "thing", "thing\n      partitions_def: { type: static, partition_keys: [a] }"
            )
            + "  task_count: 2\n",
            ":10: attributes.task_count must be 1 for partitioned assets: each partition is a "
            "task.",
        ),
        (f"{ONE}  max_in_flight: 5\n", ":9: attributes.max_in_flight is not a field."),
    ],
    ids=["job", "timeout", "no task", "tasks and partitions", "a field of functions"],
)
def test_an_error_in_the_yaml_of_a_job_is_reported(attributes: str, problem: str) -> None:
    with pytest.raises(Exception, match="thing") as error, loaded(attributes, CloudRunJobAsset):
        pass

    assert isinstance(error.value.__cause__, DefsYamlError)
    assert problem in str(error.value.__cause__)


@pytest.mark.parametrize(
    ("job", "folder"),
    [
        (None, "cloud_function"),
        ("nightly-monthly-reports", "monthly_reports"),
        ("nightly-reports", "reports"),
        ("elsewhere", None),
    ],
)
def test_the_task_of_a_job_is_looked_for_in_its_folder(job: str | None, folder: str | None) -> None:
    component = CloudRunJobAsset.from_attributes_dict(
        attributes={"assets": [{"key": "thing"}], "task": "scripted", "job": job}
    )
    with create_defs_folder_sandbox() as sandbox:
        project = sandbox.project_root
        for each in ("cloud_function", "monthly_reports", "reports"):
            (project / each / "tasks").mkdir(parents=True)
            (project / each / "job.py").touch()

        found = component._task_source(project / "orchestrator")

    assert found == (folder and project / folder / "tasks" / "scripted.py")


def test_what_is_left_of_a_function_is_not_the_folder_of_a_job() -> None:
    component = CloudRunJobAsset.from_attributes_dict(
        attributes={"assets": [{"key": "thing"}], "task": "scripted"}
    )
    with create_defs_folder_sandbox() as sandbox:
        project = sandbox.project_root
        (project / "cloud_function" / ".venv").mkdir(parents=True)  # Git does not move it
        (project / "cloud_run_job" / "tasks").mkdir(parents=True)

        found = component._task_source(project / "orchestrator")

    assert found == project / "cloud_run_job" / "tasks" / "scripted.py"


def test_a_folder_is_no_name_of_a_job() -> None:
    with create_defs_folder_sandbox() as sandbox:
        project = sandbox.project_root
        (project / "monthly_reports").mkdir()
        (project / "monthly_reports" / "job.py").touch()
        component = CloudRunJobAsset.from_attributes_dict(
            attributes={"assets": [{"key": "thing"}], "task": "any", "job": "monthly-reports"}
        )
        errors = dict(component._find_inconsistencies(project / "orchestrator"))

    assert errors["job",].startswith("must be the name of a job in Google Cloud, and not a folder")
