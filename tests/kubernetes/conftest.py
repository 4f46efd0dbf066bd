"""Dagster's instances of production, with PostgreSQL and emulated storage.

These tests run in the orchestrator's environment of a rendered project: see
rendered/test_gke.py.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from chart import instance
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster_postgres.auth import GcpWifTokenProvider
from kubernetes_api import Kubernetes, kubernetes
from local_cloud import postgres
from local_cloud.cloud import create_bucket, storage_emulator
from local_cloud.processes import free_port, running
from local_cloud.project import ORCHESTRATOR

PRODUCTION = ORCHESTRATOR / "production"


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL."""
    folder, port = tmp_path_factory.mktemp("postgres"), free_port()
    command = ["python", "-m", "local_cloud.postgres", str(folder), str(port)]
    with running("PostgreSQL", command, port=port, environment={}):
        yield postgres.url(folder, port)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An emulated Cloud Storage with the bucket for logs, in the environment."""
    with storage_emulator() as settings:
        create_bucket(settings["STORAGE_EMULATOR_HOST"], "the-logs")
        for name, value in {**settings, "DAGSTER_LOGS_BUCKET": "the-logs"}.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture
def values() -> dict[str, Any]:
    """The values for the chart."""
    loaded: dict[str, Any] = yaml.safe_load((PRODUCTION / "values.yaml").read_text())
    return loaded


@pytest.fixture
def dagster_yaml() -> dict[str, Any]:
    """The instance of production anywhere else."""
    loaded: dict[str, Any] = yaml.safe_load((PRODUCTION / "dagster.yaml").read_text())
    return loaded


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty folder for a dagster.yaml."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def made(values: dict[str, Any], database: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The dagster.yaml that the chart makes, with a database whose password is a token."""
    url = urlsplit(database)
    monkeypatch.setattr(
        GcpWifTokenProvider, "_fetch_token", lambda _: (url.password, time.time() + 3600)
    )
    values["postgresql"] |= {
        "postgresqlHost": url.hostname,
        "postgresqlUsername": url.username,
        "postgresqlDatabase": url.path.removeprefix("/"),
        "postgresqlParams": {},  # this PostgreSQL has no certificate
        "service": {"port": url.port},
    }
    return instance(values)


@pytest.fixture
def cluster(made: dict[str, Any], tmp_path: Path) -> Iterator[Kubernetes]:
    """A stand-in for the cluster, which the instance finds by a file."""
    with kubernetes() as cluster:
        made["run_launcher"]["config"] |= {
            "load_incluster_config": False,
            "kubeconfig_file": str(cluster.kubeconfig(tmp_path)),
        }
        yield cluster


def load(home: Path, configuration: dict[str, Any]) -> DagsterInstance:
    """Load an instance as Dagster's own processes do."""
    (home / "dagster.yaml").write_text(yaml.safe_dump(configuration))
    return DagsterInstance.from_ref(InstanceRef.from_dir(str(home)))
