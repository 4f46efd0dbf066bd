"""How rows are fitted to a Delta table: to its columns, and to the types that Delta has.

What would change a value on the way is refused.
"""

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
from deltalake import DeltaTable

_STORED = (
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Float32, pl.Float64, pl.Decimal),
    *(pl.Boolean, pl.String, pl.Binary, pl.Date),
)
# By name, since older versions of Polars lack some types.
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


def fit_to_table(
    df: pl.DataFrame, table: DeltaTable | None, *, add_columns: bool = False
) -> pl.DataFrame:
    """The rows of `df`, with the columns of a table and in its types.

    Args:
        df: The rows.
        table: The table. None for a new one, which gets the columns of `df`.
        add_columns: Whether the table gets the columns that only `df` has, and null in those that
            only the table has.

    Raises:
        WriteRefusedError: The columns are not those of the table, a value would change in the type
            of its column, or Delta does not have the type.
    """
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


def partition_value(rows: pl.DataFrame, column: str, text: str) -> Any:
    """The value of a partition, which all its rows must have.

    Args:
        rows: The rows of the partition, fitted to the table.
        column: The column that the table is partitioned by.
        text: The value, as text.

    Raises:
        WriteRefusedError: The rows have no such column, its type cannot partition a table, the text
            is no value of that type, or a row has another value.
    """
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
            f"{text!r} is no value of the column {column!r}, which is {dtype}. Nothing was "
            "written. Partition by text, integers, dates, datetimes or booleans, and pass a date "
            "or datetime as ISO 8601, a boolean as true or false."
        ) from None
    others = rows.filter(rows.get_column(column).ne_missing(value))
    if others.height:
        raise WriteRefusedError(
            f"The column {column!r} is {others.item(0, column)!r} in {others.height} of "
            f"{rows.height} rows, and the partition is {value!r}. Nothing was written. Write the "
            "rows of one partition at a time."
        )
    return value


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
            f"The columns are not those of the table {location}: "
            f"{', '.join([*new, *missing, *different])}. Nothing was written. Change the rows; or, "
            "for columns that are new or missing, pass on_schema_change='add_columns'."
        )


def _same_kind(dtype: Any, target: Any) -> bool:
    """Whether values keep their meaning when they are cast, if they fit."""
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
    """The type that Delta stores all values of a type in."""
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
            f"The column {column!r} holds {name}, which Delta does not have. Nothing was written. "
            f"Cast it to {_CAST_TO.get(name, 'String')}."
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
