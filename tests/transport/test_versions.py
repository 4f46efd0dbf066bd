"""A task and its definition of different versions, since they are deployed one after the other."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import gcp_pipes
import pytest
from conftest import (
    FUNCTIONS,
    Define,
    Materialize,
    Partitions,
    Run,
    days,
    run_asset,
    serve,
)
from faults import FaultProxy
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.cloud_run_job_client import PipesCloudRunJobClient
from gcp_pipes.protocol import PROTOCOL_VERSION
from local_cloud.project import TASKS
from local_cloud.run_admin import Job, RunAdmin, run_admin

OLDER, NEWER = PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1
NO_TASK = "does not fit the definition in Dagster: There is no task 'gone'. The tasks are: "
MAY_BE_OLDER = "Its deployed code may be older or newer than the definition: "
RETRIES = dg.RetryPolicy(max_retries=2)

PackageOf = Callable[[int], Path]
RunJob = Callable[..., Run]


@pytest.fixture
def package_of(tmp_path: Path) -> PackageOf:
    """Copies the package, with another version of the protocol, into a folder for PYTHONPATH."""

    def package_of(version: int) -> Path:
        package = tmp_path / f"version-{version}"
        shutil.copytree(Path(gcp_pipes.__file__).parent, package / "gcp_pipes")
        protocol = package / "gcp_pipes" / "protocol.py"
        own = f"\nPROTOCOL_VERSION = {PROTOCOL_VERSION}\n"
        assert own in protocol.read_text()
        protocol.write_text(protocol.read_text().replace(own, f"\nPROTOCOL_VERSION = {version}\n"))
        return package

    return package_of


@pytest.fixture
def admin(emulator: Mapping[str, str], package_of: PackageOf) -> Iterator[RunAdmin]:
    """The API, and jobs whose packages have different versions."""

    def job(**environment: str) -> Job:
        return Job(
            [str(TASKS / ".venv" / "bin" / "python"), "job.py"],
            directory=TASKS,
            environment={
                "STORAGE_EMULATOR_HOST": emulator["STORAGE_EMULATOR_HOST"],
                "HEARTBEAT_INTERVAL": "2",
                **environment,
            },
        )

    jobs = {
        "same": job(),
        "older": job(PYTHONPATH=str(package_of(OLDER))),
        "newer": job(PYTHONPATH=str(package_of(NEWER))),
    }
    with run_admin(jobs) as admin:
        yield admin


@pytest.fixture
def run_job(admin: RunAdmin, reader: PipesCloudStorageMessageReader) -> RunJob:
    """Materializes an asset by a job."""

    def run_job(job: str, count: int = 1, **event: Any) -> Run:
        client = PipesCloudRunJobClient(
            reader, project="local", region="europe-west4", endpoint=admin.url, timeout=10
        )

        @dg.asset(retry_policy=RETRIES)
        def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return client.run(
                context=context, job=job, event=event, task_count=count
            ).get_materialize_result()

        return run_asset(thing)

    return run_job


def requests_to(proxy: FaultProxy) -> int:
    """How many calls went through a proxy."""
    return sum(method == "POST" for method, _ in proxy.seen)


def test_a_task_that_the_function_does_not_have_fails_the_step_without_a_retry(
    client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    @dg.asset(retry_policy=RETRIES)
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return client.run(
            context=context, function_url=calls.url, event={"task": "gone"}
        ).get_materialize_result()

    run = run_asset(thing)

    assert run.failure.startswith(f"The cloud function {TASKS.name} {NO_TASK}")
    what_to_do = "deploy the function, or correct the name.\n\n"
    assert f". {MAY_BE_OLDER}{what_to_do}" in run.failure
    assert "\nstatus: 400\n" in run.failure
    assert "\nattempts: 1\n" in run.failure
    assert "Traceback" not in run.failure
    assert requests_to(calls) == 1


def test_no_further_partition_calls_a_function_that_does_not_have_the_task(
    define: Define, partitions: Partitions, calls: FaultProxy
) -> None:
    thing = define(task="gone", max_in_flight=1, retry_policy=RETRIES)

    assert not partitions.run(thing, *days(30))

    made = requests_to(calls)
    assert made <= 3  # the next ones may start before the first one is known to have failed
    counts, reason, *_ = partitions.failure().description.split("\n")
    assert counts == f"{made} of 30 partitions failed, and {30 - made} were not started."
    assert reason.startswith(f"2024-01-01: The cloud function {TASKS.name} {NO_TASK}")
    assert MAY_BE_OLDER in reason
    assert not any(each.is_step_up_for_retry for each in partitions.runs[-1].all_events)


def test_a_task_that_the_job_does_not_have_fails_the_step_without_a_retry(
    run_job: RunJob, admin: RunAdmin
) -> None:
    run = run_job("same", task="gone")

    name = "projects/local/locations/europe-west4/jobs/same"
    assert run.failure.startswith(f"The Cloud Run job {name} {NO_TASK}")
    assert f". {MAY_BE_OLDER}deploy the job, or correct the name.\n\n" in run.failure
    assert "Traceback" not in run.failure
    assert len(admin.executions) == 1


def test_a_task_that_the_job_does_not_have_is_reported_once_for_all_tasks(
    run_job: RunJob, admin: RunAdmin
) -> None:
    run = run_job("same", count=3, task="gone")

    assert run.failure.count(NO_TASK) == 1
    assert run.failure.startswith("The Cloud Run job projects/local/")
    assert len(admin.executions) == 1


OTHER_VERSIONS = [
    (OLDER, "The deployed code is older: deploy the {what}."),
    (NEWER, "The code of Dagster is older: deploy the Dagster project."),
]


@pytest.mark.parametrize(("version", "older"), OTHER_VERSIONS)
def test_a_function_with_another_version_of_the_protocol_rejects_the_call(
    version: int,
    older: str,
    package_of: PackageOf,
    client: PipesCloudFunctionClient,
    emulator: Mapping[str, str],
    materialize: Materialize,
    tmp_path: Path,
) -> None:
    storage = emulator["STORAGE_EMULATOR_HOST"]
    path = f"{package_of(version)}:{TASKS}"

    with serve(TASKS / "main.py", storage, PYTHONPATH=path) as url:
        run = materialize(url=url, lines=3)

    assert run.failure.startswith(
        f"The cloud function {TASKS.name} does not fit the definition in Dagster: Dagster has "
        f"version {PROTOCOL_VERSION} of the protocol of their calls, and the deployed code has "
        f"version {version}. {older.format(what='function')}\n\n"
    )
    assert "\nstatus: 400\n" in run.failure
    assert "\nattempts: 1\n" in run.failure
    assert run.lines == []


@pytest.mark.parametrize(("version", "older"), OTHER_VERSIONS)
def test_a_job_with_another_version_of_the_protocol_rejects_the_call(
    version: int, older: str, run_job: RunJob, admin: RunAdmin
) -> None:
    run = run_job("older" if version == OLDER else "newer", task="scripted", lines=3)

    assert f"and the deployed code has version {version}. {older.format(what='job')}\n\n" in (
        run.failure
    )
    assert run.lines == []
    assert len(admin.executions) == 1


def test_a_function_that_says_another_version_and_rejects_nothing_fails_the_step(
    materialize: Materialize, emulator: Mapping[str, str]
) -> None:
    with serve(FUNCTIONS / "stock.py", emulator["STORAGE_EMULATOR_HOST"]) as url:
        run = materialize(url=url, lines=3, opened={"protocol_version": NEWER})
        same = materialize(url=url, lines=3, opened={"protocol_version": PROTOCOL_VERSION})

    assert f"The cloud function {url} does not fit the definition in Dagster: Dagster has " in (
        run.failure
    )
    assert "The code of Dagster is older: deploy the Dagster project." in run.failure
    assert same.success
