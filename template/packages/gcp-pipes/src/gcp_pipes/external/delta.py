"""Writes rows to a Delta table, in its columns and types, each write once; retries conflicts.

A write that would change a value is rejected.
"""

import re
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

import polars as pl
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry

from gcp_pipes.external.delta_scan import quote
from gcp_pipes.external.lake_errors import lake_errors

_WRITERS = threading.BoundedSemaphore(4)  # more at the same time would mostly cause conflicts
# delta-rs commits a partition again, with the files that it has written, after a commit of another
# partition. It would do so, too, after a commit of its own whose response was lost, or after
# another writer has created the table: then rows could be there twice.
_RETRIES_OF_PARTITION = 100
_NO_RETRIES = 0
_CONFLICT = re.compile(
    r"Failed to commit transaction: \d+$|[Cc]oncurrent|changed since last commit"
    "|table already exists|Invalid table version"
)
_WRITE_ID = "writeId"  # stored in each commit, so that a write can recognize its own

_STORED = (
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Float32, pl.Float64, pl.Decimal),
    *(pl.Boolean, pl.String, pl.Binary, pl.Date),
)
# By name, since older versions of Polars do not have all types.
_STORED_AS = {
    "UInt8": pl.Int16(),
    "UInt16": pl.Int32(),
    "UInt32": pl.Int64(),
    "Float16": pl.Float32(),
    "Categorical": pl.String(),
    "Enum": pl.String(),
}
_CAST_TO = {
    "UInt64": "Int64, or to Decimal(20, 0) if some values are larger",
    "Int128": "Int64, or to Decimal(38, 0) if some values are larger",
    "UInt128": "Int64, or to Decimal(38, 0) if some values are larger",
    "Time": "String, or to Int64, which holds nanoseconds",
    "Duration": "Int64, which holds the number of its time units",
    "Null": "the type that its values will have",
    "Struct": "String, or give it a field",
    "Map": "List(Struct), with a key and a value",
}


class WriteRefusedError(ValueError):
    """The rows do not fit the table. Nothing was written."""


class WriteUnknownError(Exception):
    """A write failed, and it is not known whether the rows are in the table."""


def write_rows(
    df: pl.DataFrame,
    location: str,
    *,
    mode: Literal["overwrite", "append", "merge"],
    timeout: float,
    on_schema_change: str = "refuse",
    partition: tuple[str, str] | None = None,
    keys: Sequence[str] = (),
) -> tuple[pl.DataFrame, DeltaTable]:
    """Write rows to a table, or create it. Return the stored rows and the table.

    The `mode` is `overwrite`, of the table or of one `partition` (column and value); `append`; or
    `merge`, by the columns `keys`. After a conflict with another writer, it starts again with the
    new version of the table.
    """
    write = _Write(df, location, mode, on_schema_change, partition, keys, uuid.uuid4().hex)
    try:
        with _WRITERS, lake_errors(location):
            return Retry(_is_conflict, initial=0.1, maximum=5.0, timeout=timeout)(write.attempt)()
    except RetryError as error:
        raise CommitFailedError(
            f"The table {location} could not be written within {timeout:g} s, because others kept "
            f"writing to it: {error.cause}. Write to it from fewer calls at the same time."
        ) from error.cause


def _is_conflict(error: Exception) -> bool:
    return isinstance(error, DeltaError) and _CONFLICT.search(str(error)) is not None


@dataclass(frozen=True)
class _Write:
    df: pl.DataFrame
    location: str
    mode: Literal["overwrite", "append", "merge"]
    on_schema_change: str
    partition: tuple[str, str] | None
    keys: Sequence[str]
    write_id: str

    def attempt(self) -> tuple[pl.DataFrame, DeltaTable]:
        """Write to the newest version of the table."""
        table = self._open()
        rows = self._fit(table)
        predicate = _predicate(rows, *self.partition) if self.partition else None
        try:
            if table is None:
                return rows, self._create(rows)
            match self.mode:
                case "overwrite":
                    self._overwrite(table, rows, predicate)
                case "append":
                    self._append(table, rows)
                case "merge":
                    self._merge(table, rows)
            return rows, table
        except Exception as error:  # delta-rs raises also this class itself
            committed = self._find_commit(error, -1 if table is None else table.version())
            if committed is None:
                raise
            return rows, committed

    def _open(self) -> DeltaTable | None:
        try:
            return DeltaTable(self.location)
        except TableNotFoundError:
            return None

    def _fit(self, table: DeltaTable | None) -> pl.DataFrame:
        if table is not None:
            self._check_partitions(table)
        expected = None if self.on_schema_change == "replace" else table
        rows = _fitted(self.df, expected, add_columns=self.on_schema_change == "add_columns")
        _check_keys(rows, self.keys)
        return rows

    def _check_partitions(self, table: DeltaTable) -> None:
        """Check that the table is partitioned as this write needs it."""
        existing = table.metadata().partition_columns
        if self.partition and existing != [self.partition[0]]:
            raise WriteRefusedError(
                f"The table {self.location} is partitioned by {existing or 'nothing'}, not by "
                f"{self.partition[0]!r}. Nothing was written. Write to another table."
            )
        if missing := [name for name in existing if name not in self.df.columns]:
            raise WriteRefusedError(
                f"The table {self.location} is partitioned by {missing[0]!r}, which the rows do "
                "not have. Nothing was written. Add the column, or write to another table."
            )

    def _create(self, rows: pl.DataFrame) -> DeltaTable:
        write_deltalake(
            self.location,
            rows,
            mode="error",
            partition_by=self._partition_by(),
            commit_properties=self._commit(_NO_RETRIES),
        )
        return DeltaTable(self.location, version=0)

    def _overwrite(self, table: DeltaTable, rows: pl.DataFrame, predicate: str | None) -> None:
        write_deltalake(
            table,
            rows,
            mode="overwrite",
            partition_by=self._partition_by(),
            predicate=predicate,
            schema_mode="overwrite" if self.on_schema_change == "replace" else "merge",
            commit_properties=self._commit(_RETRIES_OF_PARTITION if predicate else _NO_RETRIES),
        )

    def _append(self, table: DeltaTable, rows: pl.DataFrame) -> None:
        write_deltalake(
            table,
            rows,
            mode="append",
            schema_mode="merge",
            commit_properties=self._commit(_NO_RETRIES),
        )

    def _merge(self, table: DeltaTable, rows: pl.DataFrame) -> None:
        """Replace the rows that have the same keys, and add the others."""
        table.merge(
            rows,
            " AND ".join(f"target.{quote(key)} = source.{quote(key)}" for key in self.keys),
            source_alias="source",
            target_alias="target",
            commit_properties=self._commit(_NO_RETRIES),
        ).when_matched_update_all().when_not_matched_insert_all().execute()

    def _partition_by(self) -> list[str] | None:
        return [self.partition[0]] if self.partition else None

    def _commit(self, retries: int) -> CommitProperties:
        metadata = {_WRITE_ID: self.write_id}
        return CommitProperties(custom_metadata=metadata, max_commit_retries=retries)

    def _find_commit(self, failure: Exception, since: int) -> DeltaTable | None:
        """The version that this write has committed although it failed: its response may be lost.

        Args:
            failure: Why the write failed.
            since: The version before the write, or -1.
        """
        try:
            table = self._open()
            if table is None:
                return None
            for commit in table.history(table.version() - since):
                if commit.get(_WRITE_ID) == self.write_id:
                    return DeltaTable(self.location, version=commit["version"])
        except Exception as error:  # delta-rs raises also this class itself
            raise WriteUnknownError(
                f"It is not known whether the rows were written to the table {self.location}: the "
                f"write failed, and then the table could not be read ({error}). Write again, "
                "unless the rows are appended: look at the table first."
            ) from failure
        return None


def _check_keys(rows: pl.DataFrame, keys: Sequence[str]) -> None:
    """Check that each row has a key of its own."""
    if missing := [key for key in keys if key not in rows.columns]:
        raise WriteRefusedError(
            f"The rows have no column {missing[0]!r} to merge them by. Nothing was written."
        )
    for key in keys:
        if nulls := rows.get_column(key).null_count():
            raise WriteRefusedError(
                f"The column {key!r} is null in {nulls} of {rows.height} rows, but rows are merged "
                "by it. Nothing was written. Remove these rows, or give them a key."
            )
    twins = rows.filter(rows.select(keys).is_duplicated()) if keys else rows.clear()
    if twins.height:
        raise WriteRefusedError(
            f"{twins.height} of {rows.height} rows have the key of another row, such as "
            f"{twins.select(keys).row(0, named=True)}. Nothing was written. Keep one row for each "
            "key."
        )


def _fitted(df: pl.DataFrame, table: DeltaTable | None, *, add_columns: bool) -> pl.DataFrame:
    """The rows with the columns and types of the table; a new table gets those of the rows."""
    columns = pl.Schema()
    if table is not None:
        columns = pl.Schema(table.schema().to_arrow())
        _check_columns(df.schema, columns, table.table_uri.rstrip("/"), add_columns=add_columns)
    new = {name: dtype for name, dtype in df.schema.items() if name not in columns}
    types = {**columns, **{name: _stored_type(dtype, name) for name, dtype in new.items()}}
    lower = [name.lower() for name in types]
    if twins := [name for name in types if lower.count(name.lower()) > 1]:
        raise WriteRefusedError(
            f"The columns {twins} differ only in case, which Delta ignores. Nothing was written. "
            "Rename all but one."
        )
    return pl.DataFrame(
        {
            name: _cast(df.get_column(name), dtype)
            if name in df.schema
            else pl.repeat(None, df.height, dtype=dtype, eager=True)
            for name, dtype in types.items()
        }
    )


def _predicate(rows: pl.DataFrame, column: str, text: str) -> str:
    """The SQL condition for a partition, which all rows must be in."""
    if column not in rows.columns:
        raise WriteRefusedError(
            f"The rows have no column {column!r} to partition the table by. Nothing was written. "
            "Add it, with the partition's value in all rows."
        )
    dtype = rows.schema[column]
    try:
        value = _parse(text, dtype)
    except (KeyError, ValueError):
        raise WriteRefusedError(
            f"{text!r} is not a value of the column {column!r}, which is {dtype}. Nothing was "
            "written. Partition by text, integers, dates, datetimes or booleans, and pass a date "
            "or datetime as ISO 8601, a boolean as true or false."
        ) from None
    others = rows.filter(rows.get_column(column).ne_missing(value))
    if others.height:
        raise WriteRefusedError(
            f"The column {column!r} is {others.item(0, column)!r} in {others.height} of "
            f"{rows.height} rows, but the partition is {value!r}. Nothing was written. Write the "
            "rows of one partition at a time."
        )
    literal = str(value).replace("'", "''")
    return f"{quote(column)} = '{literal}'"


def _check_columns(
    columns: pl.Schema, expected: pl.Schema, location: str, *, add_columns: bool
) -> None:
    new = [f"{name!r} ({dtype}) is new" for name, dtype in columns.items() if name not in expected]
    missing = [
        f"{name!r} ({dtype}) is missing" for name, dtype in expected.items() if name not in columns
    ]
    different = [
        f"{name!r} is {columns[name]}, not {dtype}"
        for name, dtype in expected.items()
        if name in columns and not _same_kind(columns[name], dtype)
    ]
    if different or ((new or missing) and not add_columns):
        raise WriteRefusedError(
            f"The columns do not match the table {location}: "
            f"{', '.join([*new, *missing, *different])}. Nothing was written. Change the rows; or, "
            "for columns that are new or missing, pass on_schema_change='add_columns', which "
            "merge_table does not have."
        )


def _same_kind(dtype: Any, target: Any) -> bool:
    """Whether values that fit into the target type keep their meaning in it."""
    match dtype, target:
        case (pl.List() | pl.Array(), pl.List()):
            return _same_kind(dtype.inner, target.inner)
        case (pl.Struct(), pl.Struct()):
            fields, others = dtype.to_schema(), target.to_schema()
            return list(fields) == list(others) and all(
                _same_kind(fields[name], others[name]) for name in others
            )
        case (pl.Null(), _):
            return True
    return bool(_kind(dtype) == _kind(target))


def _kind(dtype: pl.DataType) -> Any:
    match dtype:
        case pl.Categorical() | pl.Enum():
            return pl.String()
        case pl.Datetime():
            return pl.Datetime("us", "UTC") if dtype.time_zone else pl.Date()
    return "number" if dtype.is_numeric() else dtype


def _stored_type(dtype: Any, column: str) -> pl.DataType:
    """The type of Delta that can store all values of a type."""
    match dtype:
        case pl.List() | pl.Array():
            return pl.List(_stored_type(dtype.inner, column))
        case pl.Struct() if dtype.fields:
            fields = dtype.to_schema().items()
            return pl.Struct({name: _stored_type(field, column) for name, field in fields})
        case pl.Datetime():
            return pl.Datetime("us", "UTC" if dtype.time_zone else None)
    if isinstance(dtype, _STORED):
        return dtype
    name = type(dtype).__name__
    if name not in _STORED_AS:
        raise WriteRefusedError(
            f"The column {column!r} has the type {name}, which Delta does not support. Nothing was "
            f"written. Cast it to {_CAST_TO.get(name, 'String')}."
        )
    return _STORED_AS[name]


def _cast(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    if column.dtype == dtype:
        return column
    cast = column.cast(dtype, strict=False)
    lost = column.filter(cast.cast(column.dtype, strict=False).ne_missing(column)).head(1)
    if len(lost):
        [value] = (lost if lost.dtype.is_nested() else lost.cast(pl.String)).to_list()
        raise WriteRefusedError(
            f"The column {column.name!r} cannot be cast from {column.dtype} to {dtype} without "
            f"loss: {value} would change. Nothing was written. Round or cast it first."
        )
    return cast


def _parse(text: str, dtype: pl.DataType) -> Any:
    match dtype:
        case pl.String():
            return text
        case pl.Date():
            return date.fromisoformat(text)
        case pl.Datetime():
            value = datetime.fromisoformat(text)
            if dtype.time_zone:
                return value.replace(tzinfo=value.tzinfo or UTC)
            if value.tzinfo is None:
                return value
        case pl.Boolean():
            return {"true": True, "false": False}[text.lower()]
        case _ if dtype.is_integer():
            return int(text)
    raise ValueError
