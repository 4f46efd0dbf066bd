"""The example task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from werkzeug.exceptions import BadRequest

RunTask = Callable[..., dict[str, Any]]


def test_the_metadata_describes_the_table(tmp_path: Path, run_task: RunTask) -> None:
    messages = run_task("people", {"dl_bucket": f"{tmp_path}/lake/", "rows": 20})

    report = messages["report_asset_materialization"]
    metadata = {name: value["raw_value"] for name, value in report["metadata"].items()}
    assert metadata["table_location"] == f"{tmp_path}/lake/people"
    table = pl.read_delta(metadata["table_location"])
    assert metadata["dagster/row_count"] == table.height == 20
    assert metadata["dagster/column_schema"]["columns"] == [
        {"name": name, "type": str(dtype)} for name, dtype in table.schema.items()
    ]
    assert table.item(0, "name") in metadata["preview"]


def test_another_run_replaces_the_rows_in_a_new_version(tmp_path: Path, run_task: RunTask) -> None:
    calls = [run_task("people", {"dl_bucket": str(tmp_path), "rows": rows}) for rows in (20, 5)]

    assert [call["report_asset_materialization"]["data_version"] for call in calls] == ["0", "1"]
    assert pl.read_delta(str(tmp_path / "people")).height == 5
    assert pl.read_delta(str(tmp_path / "people"), version=0).height == 20


def test_the_data_lake_is_a_required_input(run_task: RunTask) -> None:
    with pytest.raises(BadRequest, match="dl_bucket"):
        run_task("people", {})
