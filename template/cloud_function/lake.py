"""How tables get into the data lake, and how they look on the asset's page in Dagster."""

from dataclasses import dataclass
from typing import Any

import polars as pl
from dagster_pipes import PipesMetadataValue
from deltalake import DeltaTable

_PREVIEW_ROWS = 5


@dataclass(frozen=True)
class WrittenTable:
    """One version of a Delta table, just written."""

    location: str
    version: int
    row_count: int
    schema: pl.Schema
    preview: pl.DataFrame

    def metadata(self) -> dict[str, PipesMetadataValue]:
        """What Dagster shows of the table. It knows the names that begin with `dagster/`."""
        columns = [{"name": name, "type": str(dtype)} for name, dtype in self.schema.items()]
        return {
            "table_location": {"type": "path", "raw_value": self.location},
            "table_version": {"type": "int", "raw_value": self.version},
            "dagster/row_count": {"type": "int", "raw_value": self.row_count},
            "dagster/column_schema": {"type": "table_schema", "raw_value": {"columns": columns}},
            "preview": {"type": "md", "raw_value": to_markdown(self.preview)},
        }


def write_table(df: pl.DataFrame, location: str) -> WrittenTable:
    """Replace the Delta table at `location` with `df`; its earlier versions stay readable.

    Args:
        df: The rows of the new version.
        location: `gs://bucket/path`, or the path of a local folder.

    Raises:
        deltalake.exceptions.DeltaError: The table could not be written.
    """
    df.write_delta(location, mode="overwrite", delta_write_options={"schema_mode": "overwrite"})
    return WrittenTable(
        location=location,
        version=DeltaTable(location).version(),
        row_count=df.height,
        schema=df.schema,
        preview=df.head(_PREVIEW_ROWS),
    )


def to_markdown(df: pl.DataFrame) -> str:
    """The rows of `df` as a Markdown table."""

    def row(values: Any) -> str:
        cells = (str(value).replace("|", "\\|").replace("\n", " ") for value in values)
        return f"| {' | '.join(cells)} |"

    return "\n".join([row(df.columns), row("---" for _ in df.columns), *map(row, df.rows())])
