"""Reads and writes tables in the data lake."""

import re
from collections.abc import Sequence
from typing import Literal

import polars as pl
from dagster_pipes import to_asset_key_path

from gcp_pipes.external.delta import write_rows
from gcp_pipes.external.delta_scan import scan_rows
from gcp_pipes.external.written_table import WrittenTable, describe


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


def read_table(
    location: str, *, columns: Sequence[str] | None = None, where: str | None = None
) -> pl.DataFrame:
    """Read a Delta table. Only the files and columns that are needed are read.

    Args:
        location: `gs://bucket/path`, or the path of a local folder.
        columns: The columns to read. The default is all.
        where: A condition in SQL for the rows to read, such as `"day" >= '2026-01-01'`.

    Raises:
        LakeAccessError: The bucket does not exist, or the tasks may not read it.
        deltalake.exceptions.DeltaError: The table does not exist or could not be read.
    """
    rows = scan_table(location, where=where)
    return (rows if columns is None else rows.select(columns)).collect()


def scan_table(location: str, *, where: str | None = None) -> pl.LazyFrame:
    """Read a Delta table lazily: `collect` reads only the columns that the query uses.

    A Polars filter does not skip files; `where` does.

    Args:
        location: As for `read_table`.
        where: As for `read_table`.

    Raises:
        LakeAccessError: As for `read_table`. `collect` may raise it, too.
        deltalake.exceptions.DeltaError: As for `read_table`. `collect` may raise it, too.
    """
    return scan_rows(location, where)


def write_table(
    df: pl.DataFrame,
    location: str,
    *,
    mode: Literal["overwrite", "append"] = "overwrite",
    on_schema_change: Literal["replace", "refuse", "add_columns"] | None = None,
    timeout: float = 300,
) -> WrittenTable:
    """Replace all rows of a Delta table, or append rows. Its earlier versions stay readable.

    Args:
        df: The rows.
        location: `gs://bucket/path`, or the path of a local folder. If there is no table, it is
            created.
        mode: Whether to `overwrite` all rows, or to `append` to them.
        on_schema_change: What to do if `df` has other columns than the table: `replace` them,
            `refuse` to write, or `add_columns` to the table. Then those that `df` lacks are null.
            The default is `replace`, or `refuse` when appending, which cannot `replace` them.
        timeout: How long to retry while others write to the table, in seconds.

    Raises:
        ValueError: The columns cannot be replaced by appending.
        WriteRefusedError: The rows do not fit the table, or Delta does not support a type.
        LakeAccessError: The bucket does not exist, or the tasks may not write to it.
        deltalake.exceptions.DeltaError: The table could not be written.
    """
    on_schema_change = on_schema_change or ("replace" if mode == "overwrite" else "refuse")
    if mode == "append" and on_schema_change == "replace":
        raise ValueError("Appending cannot replace the columns. Use add_columns or refuse.")
    written = write_rows(
        df, location, mode=mode, on_schema_change=on_schema_change, timeout=timeout
    )
    return describe(*written, location)


def merge_table(
    df: pl.DataFrame, location: str, *, key: str | Sequence[str], timeout: float = 300
) -> WrittenTable:
    """Replace the rows of a Delta table that have the same key, and add the others.

    Args:
        df: The rows, with the columns of the table. Each has a key of its own.
        location: As for `write_table`.
        key: The column with the key, or several columns.
        timeout: As for `write_table`.

    Raises:
        ValueError: There is no key.
        WriteRefusedError: As for `write_table`; or a key is null or there twice.
        LakeAccessError: As for `write_table`.
        deltalake.exceptions.DeltaError: As for `write_table`.
    """
    keys = [key] if isinstance(key, str) else key
    if not keys:
        raise ValueError("There is no column to merge by. Name at least one.")
    return describe(*write_rows(df, location, mode="merge", keys=keys, timeout=timeout), location)


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
        location: As for `write_table`.
        column: The column that the table is partitioned by.
        value: The value of that column in all rows, as text.
        on_schema_change: What to do if `df` has other columns than the table: `refuse` to write, or
            `add_columns` to the table. Columns that are missing on one side are null.
        timeout: As for `write_table`.

    Raises:
        WriteRefusedError: As for `write_table`; or a row is not in the partition.
        LakeAccessError: As for `write_table`.
        deltalake.exceptions.DeltaError: As for `write_table`.
    """
    written = write_rows(
        df,
        location,
        mode="overwrite",
        on_schema_change=on_schema_change,
        timeout=timeout,
        partition=(column, value),
    )
    return describe(*written, location, is_partition=True)
