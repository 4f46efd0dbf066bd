"""Fixtures of pytest: the local cloud, and what Dagster sends to a function.

The `pyproject.toml` of each project loads them, by `-p local_cloud.fixtures`.
"""

from collections.abc import Iterator, Mapping, Sequence

import pytest
from dagster_pipes import PipesContextData
from local_cloud.cloud import local_cloud, storage_emulator


@pytest.fixture(scope="session")
def emulated_storage() -> Iterator[Mapping[str, str]]:
    """Cloud Storage with the messages bucket; its settings are in the environment."""
    with storage_emulator() as settings, pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        yield settings


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The served function and Cloud Storage; their settings are in the environment.

    Args:
        tmp_path_factory: Makes the folder that is the data lake.
    """
    lake = tmp_path_factory.mktemp("lake")
    with local_cloud(lake) as settings, pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        yield settings


def context_data(asset_keys: Sequence[str], partition_key: str | None = None) -> PipesContextData:
    """What Dagster sends to a function that is to materialize assets, or a partition of them.

    Args:
        asset_keys: The keys of the assets.
        partition_key: The partition; None if there are none.
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
