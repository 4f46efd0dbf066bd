"""What Dagster shows of the tables in the data lake."""

import polars as pl

from lake import to_markdown


def test_a_preview_keeps_its_columns_whatever_the_values_hold() -> None:
    df = pl.DataFrame({"a": ["x|y", "two\nlines"], "b": [1, None]})

    assert to_markdown(df).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y | 1 |",
        "| two lines | None |",
    ]
