"""The example task."""

import pytest
from deltalake import DeltaTable
from werkzeug.exceptions import BadRequest

from gcp_pipes.external.testing import RecordingPipesContext
from lake import read_table
from tasks import people


def test_the_metadata_describes_the_table(lake: str) -> None:
    pipes = RecordingPipesContext("people")

    people.run(pipes, {"dl_bucket": f"{lake}/", "rows": 20})

    metadata = pipes.materializations["people"].metadata
    assert metadata["table_location"] == f"{lake}/people"
    table = read_table(metadata["table_location"])
    assert metadata["dagster/row_count"] == table.height == 20
    assert metadata["dagster/column_schema"]["columns"] == [
        {"name": name, "type": str(dtype)} for name, dtype in table.schema.items()
    ]
    assert table.item(0, "name") in metadata["preview"]


def test_another_run_replaces_the_rows_in_a_new_version(lake: str) -> None:
    for version, rows in enumerate([20, 5]):
        pipes = RecordingPipesContext("people")
        people.run(pipes, {"dl_bucket": lake, "rows": rows})
        assert pipes.materializations["people"].data_version == str(version)

    assert read_table(f"{lake}/people").height == 5
    assert len(DeltaTable(f"{lake}/people").history()) == 2


def test_the_data_lake_is_a_required_input() -> None:
    with pytest.raises(BadRequest, match="dl_bucket"):
        people.run(RecordingPipesContext("people"), {})
