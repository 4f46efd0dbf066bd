"""The example task."""

from pathlib import Path

import polars as pl
import pytest
from werkzeug.exceptions import BadRequest

from gcp_pipes.external.testing import RecordingPipesContext
from tasks import people


def test_the_metadata_describes_the_table(tmp_path: Path) -> None:
    pipes = RecordingPipesContext("people")

    people.run(pipes, {"dl_bucket": f"{tmp_path}/lake/", "rows": 20})

    metadata = pipes.materializations["people"].metadata
    assert metadata["table_location"] == f"{tmp_path}/lake/people"
    table = pl.read_delta(metadata["table_location"])
    assert metadata["dagster/row_count"] == table.height == 20
    assert metadata["dagster/column_schema"]["columns"] == [
        {"name": name, "type": str(dtype)} for name, dtype in table.schema.items()
    ]
    assert table.item(0, "name") in metadata["preview"]


def test_another_run_replaces_the_rows_in_a_new_version(tmp_path: Path) -> None:
    for version, rows in enumerate([20, 5]):
        pipes = RecordingPipesContext("people")
        people.run(pipes, {"dl_bucket": str(tmp_path), "rows": rows})
        assert pipes.materializations["people"].data_version == str(version)

    assert pl.read_delta(str(tmp_path / "people")).height == 5
    assert pl.read_delta(str(tmp_path / "people"), version=0).height == 20


def test_the_data_lake_is_a_required_input() -> None:
    with pytest.raises(BadRequest, match="dl_bucket"):
        people.run(RecordingPipesContext("people"), {})
