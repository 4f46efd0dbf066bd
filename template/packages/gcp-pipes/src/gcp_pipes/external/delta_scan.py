"""Reads Delta tables, and only what is needed of them."""

from collections.abc import Iterator

import polars as pl
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import TableNotFoundError
from polars.io.plugins import register_io_source

from gcp_pipes.external.lake_errors import lake_errors


def scan_rows(location: str, where: str | None = None) -> pl.LazyFrame:
    """The rows of a Delta table for which the SQL condition `where` is true, as a lazy frame.

    delta-rs reads them: Polars' own reader fails for some names of folders and of columns that a
    table is partitioned by.
    """
    try:
        with lake_errors(location):
            table = DeltaTable(location)
    except TableNotFoundError as error:
        raise TableNotFoundError(
            f"There is no table at {location}. Materialize the asset that writes it first."
        ) from error

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, limit: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        query = " ".join(
            [
                "SELECT",
                ", ".join(map(quote, columns)) if columns else "*",
                "FROM scanned_table",
                *([f"WHERE {where}"] if where is not None else []),
                *([f"LIMIT {limit}"] if limit is not None else []),
            ]
        )
        with lake_errors(location):
            for batch in QueryBuilder().register("scanned_table", table).execute(query):
                rows = pl.DataFrame(batch)
                yield rows if predicate is None else rows.filter(predicate)

    return register_io_source(read, schema=pl.Schema(table.schema().to_arrow()))


def quote(column: str) -> str:
    """The name of a column in SQL."""
    return '"' + column.replace('"', '""') + '"'
