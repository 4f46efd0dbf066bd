"""Reads and writes the tables of the data lake, and describes them for Dagster."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
from dagster_pipes import PipesMetadataValue, to_asset_key_path
from deltalake import CommitProperties, DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry

from gcp_pipes.external.delta import fit_to_table, partition_value

_PREVIEW_ROWS = 5
# delta-rs retries a commit while other writers commit other partitions.
_MANY_ATTEMPTS = CommitProperties(max_commit_retries=100)
_ONE_ATTEMPT = CommitProperties(max_commit_retries=0)
_WRITERS = threading.BoundedSemaphore(4)  # more at the same time mostly conflict


def table_location(lake: str, asset_key: str) -> str:
    """The location of the table of an asset: a folder for each part of the asset's key.

    Two keys never share a location, and none is outside the lake or in a folder of Delta's own.
    Letters, digits, `-`, `_` and `.` stay as they are, except for a `_` or `.` at the start of a
    part. Any other byte becomes `!` and its number in three digits. An empty part becomes `!`.

    Args:
        lake: `gs://bucket` or `gs://bucket/path`, or the path of a local folder.
        asset_key: The key, as `pipes.asset_key` has it.
    """
    parts = to_asset_key_path(f"{asset_key}/")  # the slash keeps a last part that is empty
    folders = (re.sub("^[._]|[^A-Za-z0-9._-]", _escape, part) or "!" for part in parts)
    return "/".join([lake.rstrip("/"), *folders])


def _escape(match: re.Match[str]) -> str:
    return "".join(f"!{byte:03}" for byte in match[0].encode(errors="surrogatepass"))


@dataclass(frozen=True)
class WrittenTable:
    """A Delta table, or one partition of it, that was just written.

    Attributes:
        location: Its location.
        version: Its new version.
        row_count: The number of rows written.
        schema: The columns, with the types in which they are stored.
        preview: The first rows written.
        is_partition: Whether only a partition was written.
    """

    location: str
    version: int
    row_count: int
    schema: pl.Schema
    preview: pl.DataFrame
    is_partition: bool = False

    def metadata(self) -> dict[str, PipesMetadataValue]:
        """The metadata for Dagster, which knows the names that begin with `dagster/`."""
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
    """All rows of the Delta table at `location`.

    Polars' own reader does not find a table in a local folder with a blank in its path.

    Args:
        location: `gs://bucket/path`, or the path of a local folder.

    Raises:
        deltalake.exceptions.DeltaError: There is no table, or it could not be read.
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
    """Replace the Delta table at `location` with `df`. Earlier versions stay readable.

    Args:
        df: The rows of the new version.
        location: `gs://bucket/path`, or the path of a local folder.
        on_schema_change: If the columns of `df` are not those of the table: `replace` them,
            `refuse` to write, or `add_columns` to the table. Missing columns are then null.
        timeout: Seconds to retry, while other writers commit to the table.

    Raises:
        WriteRefusedError: The rows do not match the table, or Delta does not support a type.
        deltalake.exceptions.DeltaError: The table could not be written.
    """

    def write(table: DeltaTable | None) -> pl.DataFrame:
        if table is None:
            return _create(location, fit_to_table(df, None))
        replaces = on_schema_change == "replace"
        rows = fit_to_table(
            df, None if replaces else table, add_columns=on_schema_change == "add_columns"
        )
        write_deltalake(
            table,
            rows,
            mode="overwrite",
            schema_mode="overwrite" if replaces else "merge",
            # delta-rs finds no conflict between two that replace an empty table.
            commit_properties=_ONE_ATTEMPT,
        )
        return rows

    return _retry(write, location, timeout)


def write_partition(
    df: pl.DataFrame,
    location: str,
    *,
    column: str,
    value: str,
    on_schema_change: Literal["refuse", "add_columns"] = "refuse",
    timeout: float = 300,
) -> WrittenTable:
    """Replace one partition of the Delta table at `location` with `df`.

    Other partitions may be written at the same time. The last write of one partition counts.

    Args:
        df: The rows of the partition. If there are none, the partition becomes empty.
        location: `gs://bucket/path`, or the path of a local folder.
        column: The column by which the table is partitioned.
        value: Its value in all rows of `df`, as text.
        on_schema_change: If the columns of `df` are not those of the table: `refuse` to write, or
            `add_columns` to the table. Missing columns are then null.
        timeout: Seconds to retry, while other writers commit to the table.

    Raises:
        WriteRefusedError: The rows do not match the table or the partition, or Delta does not
            support a type.
        deltalake.exceptions.DeltaError: The partition could not be written.
    """
    identifier = '"' + column.replace('"', '""') + '"'

    def write(table: DeltaTable | None) -> pl.DataFrame:
        rows = fit_to_table(df, table, add_columns=on_schema_change == "add_columns")
        literal = str(partition_value(rows, column, value)).replace("'", "''")
        if table is None:
            return _create(location, rows, partition_by=[column])
        write_deltalake(
            table,
            rows,
            mode="overwrite",
            partition_by=[column],
            predicate=f"{identifier} = '{literal}'",
            schema_mode="merge",
            commit_properties=_MANY_ATTEMPTS,
        )
        return rows

    return _retry(write, location, timeout, is_partition=True)


def _create(
    location: str, rows: pl.DataFrame, partition_by: list[str] | None = None
) -> pl.DataFrame:
    # A retry would add the rows to a table that another writer has created in the meantime.
    write_deltalake(
        location, rows, mode="error", partition_by=partition_by, commit_properties=_ONE_ATTEMPT
    )
    return rows


def _retry(
    write: Callable[[DeltaTable | None], pl.DataFrame],
    location: str,
    timeout: float,
    *,
    is_partition: bool = False,
) -> WrittenTable:
    """Write to the current version of the table; retry while other writers conflict."""

    def attempt() -> WrittenTable:
        with _WRITERS:
            try:
                table = DeltaTable(location)
            except TableNotFoundError:
                table = None
            rows = write(table)
        return WrittenTable(
            location=location,
            version=0 if table is None else table.version(),
            row_count=rows.height,
            schema=rows.schema,
            preview=rows.head(_PREVIEW_ROWS),
            is_partition=is_partition,
        )

    try:
        return Retry(_is_conflict, initial=0.1, maximum=5.0, timeout=timeout)(attempt)()
    except RetryError as error:
        raise CommitFailedError(
            f"Could not write the table {location} within {timeout:g} s, since other writers kept "
            f"committing: {error.cause}. Write to it from fewer calls at the same time."
        ) from error.cause


def _is_conflict(error: Exception) -> bool:
    created = isinstance(error, DeltaError) and "table already exists" in str(error)
    return created or isinstance(error, CommitFailedError)


def to_markdown(df: pl.DataFrame) -> str:
    """The rows of `df` as a Markdown table.

    Args:
        df: A few rows. All of them are shown.
    """

    def row(values: Any) -> str:
        cells = (str(value).replace("|", "\\|").replace("\n", " ") for value in values)
        return f"| {' | '.join(cells)} |"

    return "\n".join([row(df.columns), row("---" for _ in df.columns), *map(row, df.rows())])
