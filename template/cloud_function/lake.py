"""Where tables are in the data lake, how they get there, and how Dagster shows them."""

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
# A commit is retried with the files that are written, as long as others write other partitions.
_MANY_ATTEMPTS = CommitProperties(max_commit_retries=100)
_ONE_ATTEMPT = CommitProperties(max_commit_retries=0)
_WRITERS = threading.BoundedSemaphore(4)  # more at once would mostly get in each other's way


def table_location(lake: str, asset_key: str) -> str:
    """Where in the lake the table of an asset is: in a folder for each part of the asset's key.

    Two keys never share a location, and none is outside the lake or in a folder of Delta's own.
    Letters, digits, `-`, `_` and `.` stay as they are, but for a `_` or `.` at the start of a part.
    Any other byte becomes `!` and its number in three digits, and an empty part becomes `!`.

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
    """A Delta table, just written, all of it or one partition.

    Attributes:
        location: Where it is.
        version: The version that has it.
        row_count: How many rows were written.
        schema: The columns, with the types in which they are stored.
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


def write_table(
    df: pl.DataFrame,
    location: str,
    *,
    on_schema_change: Literal["replace", "refuse", "add_columns"] = "replace",
    timeout: float = 300,
) -> WrittenTable:
    """Replace the Delta table at `location` with `df`; its earlier versions stay readable.

    Args:
        df: The rows of the new version.
        location: `gs://bucket/path`, or the path of a local folder.
        on_schema_change: What to do if the columns of `df` are not those of the table: `replace`
            them, `refuse` to write, or `add_columns` to the table. Then those that `df` lacks are
            null.
        timeout: Seconds to retry for, while others write to the table.

    Raises:
        WriteRefusedError: The rows do not fit the table, or Delta does not have one of their types.
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

    Others may write at the same time. Of two that write one partition, the last replaces the first.

    Args:
        df: The rows of the partition. Without any, the partition is emptied.
        location: `gs://bucket/path`, or the path of a local folder.
        column: The column that the table is partitioned by.
        value: Its value in all rows of `df`, as text.
        on_schema_change: What to do if the columns of `df` are not those of the table: `refuse` to
            write, or `add_columns` to the table. Then those that either lacks are null.
        timeout: Seconds to retry for, while others write to the table.

    Raises:
        WriteRefusedError: The rows do not fit the table or the partition, or Delta does not have
            one of their types.
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
    # A second attempt would add the rows to a table that another has created in the meantime.
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
    """Write to the table as it is now, again and again while others are faster."""

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
            f"The table {location} could not be written within {timeout:g} s, since others kept "
            f"writing to it: {error.cause}. Write to it from fewer calls at once."
        ) from error.cause


def _is_conflict(error: Exception) -> bool:
    created = isinstance(error, DeltaError) and "table already exists" in str(error)
    return created or isinstance(error, CommitFailedError)


def to_markdown(df: pl.DataFrame) -> str:
    """The rows of `df` as a Markdown table.

    Args:
        df: A few rows, for all of them are shown.
    """

    def row(values: Any) -> str:
        cells = (str(value).replace("|", "\\|").replace("\n", " ") for value in values)
        return f"| {' | '.join(cells)} |"

    return "\n".join([row(df.columns), row("---" for _ in df.columns), *map(row, df.rows())])
