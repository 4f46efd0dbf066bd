"""Pytest fixtures for the local cloud, and the Pipes context that Dagster sends to a function.

Each `pyproject.toml` loads them with `-p local_cloud.fixtures`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
from dagster_pipes import PipesContextData
from local_cloud.cloud import local_cloud, storage_emulator


@pytest.fixture(scope="session")
def emulated_storage() -> Iterator[Mapping[str, str]]:
    """Emulated Cloud Storage with the messages bucket; the environment has its settings."""
    with storage_emulator() as settings, _environment(settings):
        yield settings


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The served function and emulated Cloud Storage; the environment has their settings.

    Args:
        tmp_path_factory: Creates the folder for the data lake.
    """
    lake = tmp_path_factory.mktemp("lake")
    with local_cloud(lake) as settings, _environment(settings):
        yield settings


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def context_data(asset_keys: Sequence[str], partition_key: str | None = None) -> PipesContextData:
    """The Pipes context that Dagster sends to a function to materialize assets.

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
