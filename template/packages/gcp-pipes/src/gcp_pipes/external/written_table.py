"""Describes a written Delta table for Dagster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from dagster_pipes import PipesMetadataValue
from deltalake import DeltaTable

from gcp_pipes.external.metadata import column_lineage

_PREVIEW_ROWS = 5


@dataclass(frozen=True)
class WrittenTable:
    """A Delta table that was written, or one partition of it.

    Attributes:
        location: Where it is.
        version: The version that was written.
        row_count: How many rows were written.
        table_row_count: How many rows the table has; None if its writers did not count them.
        size_bytes: The size of the table's files, without those of earlier versions.
        file_count: How many files these are.
        schema: The columns, with the types in which they are stored.
        preview: The first rows that were written.
        comments: The comments on columns in the Delta table, by column.
        is_partition: Whether only one partition was written.
    """

    location: str
    version: int
    row_count: int
    table_row_count: int | None
    size_bytes: int
    file_count: int
    schema: pl.Schema
    preview: pl.DataFrame
    comments: Mapping[str, str]
    is_partition: bool

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
        metadata: dict[str, PipesMetadataValue] = {
            "table_location": {"type": "path", "raw_value": self.location},
            "table_version": {"type": "int", "raw_value": self.version},
            "table_size_bytes": {"type": "int", "raw_value": self.size_bytes},
            "table_files": {"type": "int", "raw_value": self.file_count},
            "dagster/column_schema": {"type": "table_schema", "raw_value": {"columns": columns}},
            "dagster/uri": {"type": "text", "raw_value": self.location},
            "preview": {"type": "md", "raw_value": to_markdown(self.preview)},
        }
        if self.table_row_count is not None:
            metadata["dagster/row_count"] = {"type": "int", "raw_value": self.table_row_count}
        if self.is_partition:
            metadata["dagster/partition_row_count"] = {"type": "int", "raw_value": self.row_count}
        if lineage:
            metadata["dagster/column_lineage"] = column_lineage(lineage)
        return metadata


def describe(
    rows: pl.DataFrame, table: DeltaTable, location: str, *, is_partition: bool = False
) -> WrittenTable:
    """Describe a table to which `rows` were written."""
    comments = {each.name: each.metadata.get("comment") for each in table.schema().fields}
    files = pl.DataFrame(table.get_add_actions())
    row_counts = files["num_records"].to_list()
    return WrittenTable(
        location=location,
        version=table.version(),
        row_count=rows.height,
        table_row_count=None if None in row_counts else sum(row_counts),
        size_bytes=sum(files["size_bytes"].to_list()),
        file_count=files.height,
        schema=rows.schema,
        preview=rows.head(_PREVIEW_ROWS),
        comments={name: str(comment) for name, comment in comments.items() if comment},
        is_partition=is_partition,
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
