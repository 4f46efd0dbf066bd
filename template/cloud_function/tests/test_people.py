"""The example task, with a Pipes context that writes its messages to a file."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import context_data
from dagster_pipes import (
    PipesContext,
    PipesDefaultContextLoader,
    PipesDefaultMessageWriter,
    PipesMappingParamsLoader,
    encode_param,
)
from werkzeug.exceptions import BadRequest

from tasks import people


def run(folder: Path, event: dict[str, Any]) -> dict[str, Any]:
    """Run the task; return what it reported of its materialization."""
    messages = folder / "messages"
    params = {
        "DAGSTER_PIPES_CONTEXT": encode_param({"data": context_data("people")}),
        "DAGSTER_PIPES_MESSAGES": encode_param({"path": str(messages)}),
    }
    with PipesContext(
        PipesMappingParamsLoader(params), PipesDefaultContextLoader(), PipesDefaultMessageWriter()
    ) as pipes:
        people.run(pipes, event)
    *_, report = (
        message["params"]
        for message in map(json.loads, messages.read_text().splitlines())
        if message["method"] == "report_asset_materialization"
    )
    assert isinstance(report, dict)
    return report


def test_the_table_holds_what_the_metadata_says(tmp_path: Path) -> None:
    report = run(tmp_path, {"dl_bucket": f"{tmp_path}/lake/", "rows": 20})

    metadata = {name: value["raw_value"] for name, value in report["metadata"].items()}
    assert metadata["table_location"] == f"{tmp_path}/lake/people"
    table = pl.read_delta(metadata["table_location"])
    assert metadata["dagster/row_count"] == table.height == 20
    assert metadata["dagster/column_schema"]["columns"] == [
        {"name": name, "type": str(dtype)} for name, dtype in table.schema.items()
    ]
    assert table.item(0, "name") in metadata["preview"]


def test_another_run_replaces_the_rows_and_makes_a_new_version(tmp_path: Path) -> None:
    first = run(tmp_path, {"dl_bucket": str(tmp_path), "rows": 20})
    second = run(tmp_path, {"dl_bucket": str(tmp_path), "rows": 5})

    assert (first["data_version"], second["data_version"]) == ("0", "1")
    assert pl.read_delta(str(tmp_path / "people")).height == 5
    assert pl.read_delta(str(tmp_path / "people"), version=0).height == 20


def test_the_data_lake_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="dl_bucket"):
        run(tmp_path, {})
