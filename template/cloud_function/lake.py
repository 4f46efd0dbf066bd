"""Reads and writes tables in the data lake, and describes them for Dagster."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl
from dagster_pipes import PipesMetadataValue, to_asset_key_path
from deltalake import DeltaTable, QueryBuilder

from gcp_pipes.external.delta import write_rows
from gcp_pipes.external.metadata import column_lineage

_PREVIEW_ROWS = 5


def table_location(lake: str, asset_key: str) -> str:
    """The location of an asset's table in the lake: a folder for each part of the asset's key.

    Different keys have different locations. None is outside the lake or in a folder of Delta's own:
    letters, digits, `-`, `_` and `.` are kept, except `_` and `.` at the start of a part. Any other
    byte becomes `!` and its number in three digits, and an empty part becomes `!`.

    Args:
        lake: `gs://bucket` or `gs://bucket/path`, or the path of a local folder.
        asset_key: The key, as in `pipes.asset_key`.
    """
    parts = to_asset_key_path(f"{asset_key}/")  # the slash keeps an empty last part
    folders = (re.sub("^[._]|[^A-Za-z0-9._-]", _escape, part) or "!" for part in parts)
    return "/".join([lake.rstrip("/"), *folders])


def _escape(match: re.Match[str]) -> str:
    return "".join(f"!{byte:03}" for byte in match[0].encode(errors="surrogatepass"))


@dataclass(frozen=True)
class WrittenTable:
    """A Delta table that was written, or one partition of it.

    Attributes:
        location: Where it is.
        version: The version that was written.
        row_count: How many rows were written.
        schema: The columns, with the types in which they are stored.
        preview: The first rows that were written.
        comments: The comments on columns in the Delta table, by column.
        is_partition: Whether only one partition was written.
    """

    location: str
    version: int
    row_count: int
    schema: pl.Schema
    preview: pl.DataFrame
    comments: Mapping[str, str] = field(default_factory=dict)
    is_partition: bool = False

    def metadata(
        self,
        *,
        descriptions: Mapping[str, str] | None = None,
        lineage: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    ) -> dict[str, PipesMetadataValue]:
        """The metadata for Dagster, which knows the names that start with `dagster/`.

        Args:
            descriptions: Descriptions of columns. The default is their comment in the Delta table.
            lineage: The columns that a column is made from: for each, an asset key and a column.
        """
        texts = {**self.comments, **(descriptions or {})}
        columns = [
            {"name": name, "type": str(dtype)}
            | ({"description": texts[name]} if name in texts else {})
            for name, dtype in self.schema.items()
        ]
        row_count = "dagster/partition_row_count" if self.is_partition else "dagster/row_count"
        metadata: dict[str, PipesMetadataValue] = {
            "table_location": {"type": "path", "raw_value": self.location},
            "table_version": {"type": "int", "raw_value": self.version},
            row_count: {"type": "int", "raw_value": self.row_count},
            "dagster/column_schema": {"type": "table_schema", "raw_value": {"columns": columns}},
            "dagster/uri": {"type": "text", "raw_value": self.location},
            "preview": {"type": "md", "raw_value": to_markdown(self.preview)},
        }
        if lineage:
            metadata["dagster/column_lineage"] = column_lineage(lineage)
        return metadata


def read_table(location: str) -> pl.DataFrame:
    """Read all rows of a Delta table.

    Polars' own reader does not find a table in a local folder with a space in its path.

    Args:
        location: `gs://bucket/path`, or the path of a local folder.

    Raises:
        deltalake.exceptions.DeltaError: The table does not exist or could not be read.
    """
    table = QueryBuilder().register("table_read", DeltaTable(location))
    return pl.DataFrame(table.execute("SELECT * FROM table_read"))


def write_table(
    df: pl.DataFrame,
    location: str,
    *,
    on_schema_change: Literal["replace", "refuse", "add_columns"] = "replace",
    timeout: float = 300,
) -> WrittenTable:
    """Replace all rows of a Delta table, or create it. Its earlier versions stay readable.

    Args:
        df: The rows.
        location: `gs://bucket/path`, or the path of a local folder.
        on_schema_change: What to do if `df` has other columns than the table: `replace` them,
            `refuse` to write, or `add_columns` to the table. Then those that `df` lacks are null.
        timeout: How long to retry while others write to the table, in seconds.

    Raises:
        WriteRefusedError: The rows do not fit the table, or Delta does not support a type.
        deltalake.exceptions.DeltaError: The table could not be written.
    """
    rows, table = write_rows(df, location, on_schema_change=on_schema_change, timeout=timeout)
    return _written(rows, table, location)


def write_partition(
    df: pl.DataFrame,
    location: str,
    *,
    column: str,
    value: str,
    on_schema_change: Literal["refuse", "add_columns"] = "refuse",
    timeout: float = 300,
) -> WrittenTable:
    """Replace one partition of a Delta table, or create the table.

    Calls may write at the same time. If they write the same partition, the last one replaces it.

    Args:
        df: The rows of the partition. Without rows, the partition is emptied.
        location: `gs://bucket/path`, or the path of a local folder.
        column: The column that the table is partitioned by.
        value: The value of that column in all rows, as text.
        on_schema_change: What to do if `df` has other columns than the table: `refuse` to write, or
            `add_columns` to the table. Then those that either lacks are null.
        timeout: How long to retry while others write to the table, in seconds.

    Raises:
        WriteRefusedError: The rows do not fit the table or the partition, or Delta does not support
            a type.
        deltalake.exceptions.DeltaError: The partition could not be written.
    """
    rows, table = write_rows(
        df,
        location,
        on_schema_change=on_schema_change,
        timeout=timeout,
        partition=(column, value),
    )
    return _written(rows, table, location, is_partition=True)


def _written(
    rows: pl.DataFrame, table: DeltaTable, location: str, *, is_partition: bool = False
) -> WrittenTable:
    comments = {each.name: each.metadata.get("comment") for each in table.schema().fields}
    return WrittenTable(
        location,
        table.version(),
        rows.height,
        rows.schema,
        rows.head(_PREVIEW_ROWS),
        {name: str(comment) for name, comment in comments.items() if comment},
        is_partition,
    )


def to_markdown(df: pl.DataFrame) -> str:
    """All rows as a Markdown table.

    Args:
        df: The rows.
    """

    def row(values: Any) -> str:
        cells = (str(value).replace("|", "\\|").replace("\n", " ") for value in values)
        return f"| {' | '.join(cells)} |"

    return "\n".join([row(df.columns), row("---" for _ in df.columns), *map(row, df.rows())])
