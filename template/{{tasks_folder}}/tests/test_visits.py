"""The example task with partitions."""

import polars as pl
import pytest

from gcp_pipes.external.testing import RecordingPipesContext
from lake import read_table
from tasks import people, visits


@pytest.fixture(autouse=True)
def ten_people(lake: str) -> None:
    """There are ten people in the data lake."""
    people.run(RecordingPipesContext("people"), {"dl_bucket": lake, "rows": 10})


def test_a_day_is_replaced_and_other_days_are_kept(lake: str) -> None:
    for day, count in (("2026-01-01", 5), ("2026-01-02", 7), ("2026-01-01", 3)):
        pipes = RecordingPipesContext("visits", partition_key=day)
        visits.run(pipes, {"dl_bucket": lake, "visits": count, "visitors": 10})

    assert pipes.materializations["visits"].metadata["dagster/partition_row_count"] == 3
    assert pipes.checks["visitors_are_known"].passed
    days = read_table(f"{lake}/visits").get_column("day").cast(pl.String).to_list()
    assert sorted(days) == ["2026-01-01"] * 3 + ["2026-01-02"] * 7


def test_visits_of_unknown_people_are_reported(lake: str) -> None:
    pipes = RecordingPipesContext("visits", partition_key="2026-01-01")

    visits.run(pipes, {"dl_bucket": lake, "visitors": 1_000})

    check = pipes.checks["visitors_are_known"]
    assert not check.passed
    assert check.metadata["visits"] > 50
