"""Backfills, by Dagster's daemon, launched as its web page does."""

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta

import pytest
from conftest import Render
from dev import Dev, running_dev


@pytest.fixture
def dev(render: Render) -> Iterator[Dev]:
    """A project of which `just dev` runs, and in which there are people."""
    with running_dev(render()) as dev:
        dev.materialize("people")
        yield dev


def days(count: int) -> list[str]:
    return [str(date(2026, 1, 1) + timedelta(days=number)) for number in range(count)]


def test_a_backfill_is_one_run_with_one_materialization_of_each_partition(dev: Dev) -> None:
    keys = days(40)

    backfill = dev.backfill("visits", keys)

    assert backfill["status"] == "COMPLETED_SUCCESS"
    assert [run["status"] for run in backfill["runs"]] == ["SUCCESS"]
    assert Counter(dev.materializations("visits")) == dict.fromkeys(keys, 1)
    assert dev.partition_counts("visits") == {"numMaterialized": 40, "numFailed": 0}


def test_a_failed_partition_of_a_backfill_is_the_only_one_marked_as_failed(dev: Dev) -> None:
    keys = days(12)
    dev.edit_function(
        "tasks/visits.py",
        "    day = pipes.partition_key\n",
        "    day = pipes.partition_key\n"
        f'    if day == "{keys[7]}":\n'
        '        raise ValueError("out of luck")\n',
    )

    backfill = dev.backfill("visits", keys)

    assert backfill["status"] == "COMPLETED_FAILED"
    assert [run["status"] for run in backfill["runs"]] == ["FAILURE"]
    others = [key for key in keys if key != keys[7]]
    assert Counter(dev.materializations("visits")) == dict.fromkeys(others, 1)
    assert dev.partition_counts("visits") == {"numMaterialized": 11, "numFailed": 1}
