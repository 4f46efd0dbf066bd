"""The example of a task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from werkzeug.exceptions import BadRequest

RunTask = Callable[..., dict[str, Any]]


def test_the_table_holds_what_the_metadata_says(tmp_path: Path, run_task: RunTask) -> None:
    said = run_task("people", {"dl_bucket": f"{tmp_path}/lake/", "rows": 20})

    report = said["report_asset_materialization"]
    metadata = {name: value["raw_value"] for name, value in report["metadata"].items()}
    assert metadata["table_location"] == f"{tmp_path}/lake/people"
    table = pl.read_delta(metadata["table_location"])
    assert metadata["dagster/row_count"] == table.height == 20
    assert metadata["dagster/column_schema"]["columns"] == [
        {"name": name, "type": str(dtype)} for name, dtype in table.schema.items()
    ]
    assert table.item(0, "name") in metadata["preview"]


def test_another_run_replaces_the_rows_and_makes_a_new_version(
    tmp_path: Path, run_task: RunTask
) -> None:
    said = [run_task("people", {"dl_bucket": str(tmp_path), "rows": rows}) for rows in (20, 5)]

    assert [each["report_asset_materialization"]["data_version"] for each in said] == ["0", "1"]
    assert pl.read_delta(str(tmp_path / "people")).height == 5
    assert pl.read_delta(str(tmp_path / "people"), version=0).height == 20


def test_the_data_lake_must_be_named(run_task: RunTask) -> None:
    with pytest.raises(BadRequest, match="dl_bucket"):
        run_task("people", {})
