"""What Dagster shows of the tables in the data lake."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl

from lake import read_table, to_markdown, write_partition, write_table


def test_a_preview_keeps_its_columns_whatever_the_values_hold() -> None:
    df = pl.DataFrame({"a": ["x|y", "two\nlines"], "b": [1, None]})

    assert to_markdown(df).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y | 1 |",
        "| two lines | None |",
    ]


def test_a_table_is_read_as_it_was_written_wherever_it_is(tmp_path: Path) -> None:
    location = str(tmp_path / "a folder" / "table")
    df = pl.DataFrame({"key": ["a", "b"], "number": [1, None]})

    write_table(df, location)

    assert read_table(location).equals(df)


def test_partitions_of_a_table_can_be_written_at_once_also_the_first_ones(tmp_path: Path) -> None:
    location = str(tmp_path / "table")
    keys = [f"{number:02}" for number in range(20)]

    def write(key: str) -> int:
        df = pl.DataFrame({"key": [key] * 3, "number": [1, 2, 3]})
        return write_partition(df, location, column="key", value=key).row_count

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, keys)) == [3] * 20

    assert sorted(pl.read_delta(location)["key"]) == sorted(keys * 3)
