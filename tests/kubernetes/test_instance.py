"""Each dagster.yaml of production makes an instance, with the real classes."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import load
from dagster import DagsterInstance
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster_gcp.gcs import GCSComputeLogManager
from dagster_k8s import K8sRunLauncher
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage


def check(loaded: DagsterInstance) -> None:
    """Use what the instance is made of, and look at its settings."""
    assert isinstance(loaded.run_coordinator, QueuedRunCoordinator)
    assert isinstance(loaded.compute_log_manager, GCSComputeLogManager)
    concurrency = loaded.get_concurrency_config()
    assert concurrency.run_queue_config
    assert concurrency.run_queue_config.max_concurrent_runs == 10
    assert concurrency.pool_config.default_pool_limit == 10
    assert loaded.run_monitoring_enabled
    assert loaded.run_retries_enabled
    assert loaded.run_retries_max_retries == 3
    assert not loaded.telemetry_enabled
    assert loaded.get_runs() == []
    key = [uuid.uuid4().hex, "compute_logs", "step"]
    logs = loaded.compute_log_manager
    with logs.open_log_stream(key, ComputeIOType.STDOUT) as stream:
        assert stream
        stream.write("printed")
    assert logs.get_log_data(key).stdout == b"printed"


@pytest.mark.usefixtures("storage")
def test_dagster_yaml_makes_an_instance(
    home: Path, dagster_yaml: dict[str, Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", database)

    with load(home, dagster_yaml) as loaded:
        assert isinstance(loaded.run_storage, PostgresRunStorage)
        check(loaded)


@pytest.mark.usefixtures("storage", "cluster")
def test_the_chart_s_dagster_yaml_makes_an_instance(home: Path, made: dict[str, Any]) -> None:
    with load(home, made) as loaded:
        assert isinstance(loaded.run_storage, PostgresRunStorage)
        assert isinstance(loaded.event_log_storage, PostgresEventLogStorage)
        assert isinstance(loaded.run_launcher, K8sRunLauncher)
        assert loaded.run_monitoring_max_resume_run_attempts == 3
        check(loaded)
