"""Pytest fixtures for the local cloud, and the Pipes context that Dagster sends to a task.

Each `pyproject.toml` loads them with `-p local_cloud.fixtures`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
from dagster_pipes import PipesContextData
from local_cloud.cloud import cloud_storage, local_cloud
from local_cloud.credentials import process_variables

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def emulated_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Emulated Cloud Storage with the data lake; the environment has its settings.

    Args:
        tmp_path_factory: Creates the folder for the buckets.
    """
    folder = tmp_path_factory.mktemp("buckets")
    with cloud_storage(folder) as settings, _environment(settings):
        yield settings


@pytest.fixture
def lake(emulated_storage: Mapping[str, str]) -> str:
    """An empty data lake, such as `gs://bucket/7`.

    Args:
        emulated_storage: It has a bucket for the data lake.
    """
    return f"{emulated_storage['LAKE_URI']}/{next(_NUMBERS)}"


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The local cloud, with all that Dagster calls; the environment has their settings.

    Args:
        tmp_path_factory: Creates the folder for the buckets.
    """
    folder = tmp_path_factory.mktemp("buckets")
    with local_cloud(folder) as settings, _environment(settings):
        yield settings


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables of this process during the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in process_variables(settings).items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        yield


def context_data(asset_keys: Sequence[str], partition_key: str | None = None) -> PipesContextData:
    """The Pipes context that Dagster sends to a task to materialize assets.

    Args:
        asset_keys: The keys of the assets.
        partition_key: The partition to materialize, if the assets have partitions.
    """
    return {
        "asset_keys": asset_keys,
        "code_version_by_asset_key": dict.fromkeys(asset_keys),
        "provenance_by_asset_key": dict.fromkeys(asset_keys),
        "partition_key": partition_key,
        "partition_key_range": None,
        "partition_time_window": None,
        "run_id": "11111111-2222-3333-4444-555555555555",
        "job_name": None,
        "retry_number": 0,
        "extras": {},
    }
