"""How tables get into the data lake, and how they look on the asset's page in Dagster."""

from dataclasses import dataclass
from typing import Any

import polars as pl
from dagster_pipes import PipesMetadataValue
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import CommitFailedError

_PREVIEW_ROWS = 5
_MOST_ATTEMPTS = 5


@dataclass(frozen=True)
class WrittenTable:
    """A Delta table, just written, all of it or one partition.

    Attributes:
        location: Where it is.
        version: Its version; of a partition, the first one seen to have it, for others may be
            writing, too.
        row_count: How many rows were written.
        schema: The columns.
        preview: The first rows that were written.
        is_partition: Whether it is but a partition that was written.
    """

    location: str
    version: int
    row_count: int
    schema: pl.Schema
    preview: pl.DataFrame
    is_partition: bool = False

    def metadata(self) -> dict[str, PipesMetadataValue]:
        """What Dagster shows of the table. It knows the names that begin with `dagster/`."""
        columns = [{"name": name, "type": str(dtype)} for name, dtype in self.schema.items()]
        row_count = "dagster/partition_row_count" if self.is_partition else "dagster/row_count"
        return {
            "table_location": {"type": "path", "raw_value": self.location},
            "table_version": {"type": "int", "raw_value": self.version},
            row_count: {"type": "int", "raw_value": self.row_count},
            "dagster/column_schema": {"type": "table_schema", "raw_value": {"columns": columns}},
            "preview": {"type": "md", "raw_value": to_markdown(self.preview)},
        }


def read_table(location: str) -> pl.DataFrame:
    """All rows of the Delta table at `location`, as they are now.

    Polars' own reader does not find a table in a local folder with a blank in its path.

    Args:
        location: `gs://bucket/path`, or the path of a local folder.

    Raises:
        deltalake.exceptions.DeltaError: There is no table, or it could not be read.
    """
    table = QueryBuilder().register("table_read", DeltaTable(location))
    return pl.DataFrame(table.execute("SELECT * FROM table_read"))


def write_table(df: pl.DataFrame, location: str) -> WrittenTable:
    """Replace the Delta table at `location` with `df`; its earlier versions stay readable.

    Args:
        df: The rows of the new version.
        location: `gs://bucket/path`, or the path of a local folder.

    Raises:
        deltalake.exceptions.DeltaError: The table could not be written.
    """
    df.write_delta(location, mode="overwrite", delta_write_options={"schema_mode": "overwrite"})
    return _written(df, location)


def write_partition(df: pl.DataFrame, location: str, *, column: str, value: str) -> WrittenTable:
    """Replace one partition of the Delta table at `location` with `df`.

    Others may write other partitions at the same time.

    Args:
        df: The rows of the partition.
        location: `gs://bucket/path`, or the path of a local folder.
        column: The column that the table is partitioned by.
        value: Its value in all rows of `df`, as text.

    Raises:
        deltalake.exceptions.DeltaError: The partition could not be written.
    """
    options = {"partition_by": [column], "predicate": f"{column} = '{value}'"}
    for attempt in range(1, _MOST_ATTEMPTS + 1):
        try:
            df.write_delta(location, mode="overwrite", delta_write_options=options)
            break
        except CommitFailedError:  # someone else has just made the table: now there is one
            if attempt == _MOST_ATTEMPTS:
                raise
    return _written(df, location, is_partition=True)


def _written(df: pl.DataFrame, location: str, *, is_partition: bool = False) -> WrittenTable:
    return WrittenTable(
        location=location,
        version=DeltaTable(location).version(),
        row_count=df.height,
        schema=df.schema,
        preview=df.head(_PREVIEW_ROWS),
        is_partition=is_partition,
    )


def to_markdown(df: pl.DataFrame) -> str:
    """The rows of `df` as a Markdown table.

    Args:
        df: A few rows, for all of them are shown.
    """

    def row(values: Any) -> str:
        cells = (str(value).replace("|", "\\|").replace("\n", " ") for value in values)
        return f"| {' | '.join(cells)} |"

    return "\n".join([row(df.columns), row("---" for _ in df.columns), *map(row, df.rows())])
