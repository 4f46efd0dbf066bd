"""The example task with partitions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

RunTask = Callable[..., dict[str, Any]]


def test_a_day_is_replaced_and_other_days_are_kept(tmp_path: Path, run_task: RunTask) -> None:
    lake = str(tmp_path)
    run_task("people", {"dl_bucket": lake, "rows": 10})
    for day, visits in (("2026-01-01", 5), ("2026-01-02", 7), ("2026-01-01", 3)):
        messages = run_task("visits", {"dl_bucket": lake, "visits": visits, "visitors": 10}, day)

    metadata = messages["report_asset_materialization"]["metadata"]
    assert metadata["dagster/partition_row_count"]["raw_value"] == 3
    assert messages["report_asset_check"]["passed"]
    table = pl.read_delta(f"{lake}/visits")
    days = table.get_column("day").cast(pl.String).to_list()
    assert sorted(days) == ["2026-01-01"] * 3 + ["2026-01-02"] * 7


def test_visits_of_unknown_people_are_reported(tmp_path: Path, run_task: RunTask) -> None:
    run_task("people", {"dl_bucket": str(tmp_path), "rows": 10})

    messages = run_task("visits", {"dl_bucket": str(tmp_path), "visitors": 1_000}, "2026-01-01")

    assert not messages["report_asset_check"]["passed"]
    assert messages["report_asset_check"]["metadata"]["visits"]["raw_value"] > 50
