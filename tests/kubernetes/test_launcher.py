"""A run is a Job of Kubernetes: it is launched, looked at, resumed and terminated."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import load
from dagster._core.code_pointer import FileCodePointer
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun, DagsterRunStatus
from dagster._daemon.monitoring.run_monitoring import monitor_started_run
from kubernetes_api import Kubernetes

IMAGE = f"europe-west4-docker.pkg.dev/my-gcp-project/people/orchestrator@sha256:{'a' * 64}"


WORKSPACE: Any = None  # the launcher of Kubernetes does not look at it


@dg.job
def counted() -> None:
    pass


@pytest.fixture
def loaded(
    home: Path, made: dict[str, Any], cluster: Kubernetes, storage: None
) -> Iterator[dg.DagsterInstance]:
    """The instance that the chart makes."""
    with load(home, made) as loaded:
        yield loaded


@pytest.fixture
def run(loaded: dg.DagsterInstance) -> DagsterRun:
    """A run that is starting, of a code location with an image."""
    repository = RepositoryPythonOrigin(
        sys.executable, FileCodePointer(__file__, "counted"), container_image=IMAGE
    )
    return loaded.create_run_for_job(
        counted,
        status=DagsterRunStatus.STARTING,
        job_code_origin=JobPythonOrigin("counted", repository),
    )


@pytest.fixture
def job(loaded: dg.DagsterInstance, run: DagsterRun, cluster: Kubernetes) -> str:
    """The name of the Job of the run."""
    loaded.run_launcher.launch_run(LaunchRunContext(run, WORKSPACE))
    [name] = cluster.jobs
    return name


def health(loaded: dg.DagsterInstance, run: DagsterRun) -> WorkerStatus:
    return loaded.run_launcher.check_run_worker_health(current(loaded, run)).status


def current(loaded: dg.DagsterInstance, run: DagsterRun) -> DagsterRun:
    found = loaded.get_run_by_id(run.run_id)
    assert found
    return found


def start(loaded: dg.DagsterInstance, run: DagsterRun) -> None:
    """Report that the run has started, as its process does."""
    loaded.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name), run.run_id
    )


def monitor(loaded: dg.DagsterInstance, run: DagsterRun) -> None:
    """Look at the run as the daemon does."""
    record = loaded.get_run_record_by_id(run.run_id)
    assert record
    monitor_started_run(loaded, WORKSPACE, record, logging.getLogger())


def test_a_run_is_a_job_with_the_image_of_its_code_location(
    loaded: dg.DagsterInstance, run: DagsterRun, job: str, cluster: Kubernetes
) -> None:
    assert job == f"dagster-run-{run.run_id}"
    assert cluster.requests == ["POST /apis/batch/v1/namespaces/dagster/jobs"]
    specification = cluster.jobs[job]["spec"]
    assert specification["backoffLimit"] == 0
    assert specification["ttlSecondsAfterFinished"] == 86400
    annotations = specification["template"]["metadata"]["annotations"]
    assert annotations == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    pod = specification["template"]["spec"]
    assert pod["serviceAccountName"] == "dagster"
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]

    [container] = pod["containers"]
    assert container["image"] == IMAGE
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["args"][1:5] == ["-m", "dagster", "api", "execute_run"]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "2Gi"},
        "limits": {"cpu": "500m", "memory": "2Gi"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert container["envFrom"] == [{"configMapRef": {"name": "dagster-orchestrator-user-env"}}]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["DAGSTER_HOME"] == "/orchestrator/production"
    assert "DAGSTER_PG_PASSWORD" not in environment


def test_the_job_says_how_the_run_is(
    loaded: dg.DagsterInstance, run: DagsterRun, job: str, cluster: Kubernetes
) -> None:
    start(loaded, run)
    assert health(loaded, run) == WorkerStatus.RUNNING

    cluster.end(job, "failed")
    assert health(loaded, run) == WorkerStatus.FAILED

    del cluster.jobs[job]
    assert health(loaded, run) == WorkerStatus.UNKNOWN


def test_a_run_whose_pod_was_evicted_goes_on_in_a_new_job_three_times(
    loaded: dg.DagsterInstance, run: DagsterRun, job: str, cluster: Kubernetes
) -> None:
    start(loaded, run)
    monitor(loaded, run)
    assert list(cluster.jobs) == [job]

    for attempt in (1, 2, 3):
        cluster.end(list(cluster.jobs)[-1], "failed")
        monitor(loaded, run)

        name = list(cluster.jobs)[-1]
        assert name == f"{job}-{attempt}"
        [container] = cluster.jobs[name]["spec"]["template"]["spec"]["containers"]
        assert container["args"][1:5] == ["-m", "dagster", "api", "resume_run"]
        assert container["image"] == IMAGE
        assert health(loaded, run) == WorkerStatus.RUNNING

    cluster.end(list(cluster.jobs)[-1], "failed")
    monitor(loaded, run)
    assert len(cluster.jobs) == 4
    assert current(loaded, run).status == DagsterRunStatus.FAILURE


def test_a_run_whose_job_is_gone_goes_on_in_a_new_one(
    loaded: dg.DagsterInstance, run: DagsterRun, job: str, cluster: Kubernetes
) -> None:
    start(loaded, run)
    del cluster.jobs[job]

    monitor(loaded, run)

    assert list(cluster.jobs) == [f"{job}-1"]


def test_to_terminate_a_run_deletes_its_job_and_its_pod(
    loaded: dg.DagsterInstance, run: DagsterRun, job: str, cluster: Kubernetes
) -> None:
    start(loaded, run)

    assert loaded.run_launcher.terminate(run.run_id)

    assert cluster.jobs == {}
    assert cluster.pods == {}
    assert current(loaded, run).status == DagsterRunStatus.CANCELING
