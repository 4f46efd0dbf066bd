"""Reading and writing tables in the data lake."""

import datetime as dt
import re
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from google.cloud import storage
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gcp_pipes.external.delta import WriteRefusedError
from gcp_pipes.external.written_table import to_markdown
from lake import merge_table, read_table, scan_table, table_location, write_partition, write_table

DAY = dt.date(2026, 1, 1)
NOON = dt.datetime(2026, 1, 1, 12)
UTC_NOON = NOON.replace(tzinfo=dt.UTC)


def frame(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame(columns)


def series(dtype: Any, *values: Any) -> pl.Series:
    return pl.Series(values, dtype=dtype)


STRUCT = series(pl.Struct({"a": pl.Int8}), {"a": 1})


def objects(lake: str) -> list[str]:
    """The names of all objects in the lake, relative to it."""
    bucket, _, prefix = lake.removeprefix("gs://").partition("/")
    with closing(storage.Client()) as client:
        blobs = client.list_blobs(bucket, prefix=f"{prefix}/")
        return [blob.name.removeprefix(f"{prefix}/") for blob in blobs]


def at_once(count: int, write: Callable[[int], Any]) -> None:
    """Call `write` in `count` threads that start at the same time."""
    start = threading.Barrier(count)

    def wait_and_write(number: int) -> None:
        start.wait()
        write(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(wait_and_write, range(count)))


def test_a_preview_keeps_its_columns_whatever_the_values_hold() -> None:
    df = pl.DataFrame({"a": ["x|y", "two\nlines"], "b": [1, None]})

    assert to_markdown(df).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y | 1 |",
        "| two lines | None |",
    ]


def test_columns_have_the_descriptions_of_the_task_or_those_of_the_table(lake: str) -> None:
    location = f"{lake}/table"
    write_table(pl.DataFrame({"id": [1], "name": ["a"], "age": [2]}), location)
    for column in ("id", "name"):
        DeltaTable(location).alter.set_column_metadata(column, {"comment": f"The {column}"})

    table = write_table(
        pl.DataFrame({"id": [1], "name": ["b"], "age": [3]}), location, on_schema_change="refuse"
    )
    metadata: dict[str, Any] = {**table.metadata(descriptions={"name": "The full name"})}

    columns = metadata["dagster/column_schema"]["raw_value"]["columns"]
    assert {each["name"]: each.get("description") for each in columns} == {
        "id": "The id",
        "name": "The full name",
        "age": None,
    }


def test_lineage_names_the_columns_that_a_column_is_made_from(lake: str) -> None:
    table = write_table(frame(person=[1]), f"{lake}/table")

    metadata: dict[str, Any] = {**table.metadata(lineage={"person": [("lake/people", "id")]})}

    assert metadata["dagster/column_lineage"]["raw_value"] == {
        "deps_by_column": {"person": [{"asset_key": ["lake", "people"], "column_name": "id"}]}
    }
    assert "dagster/column_lineage" not in table.metadata()


def test_a_table_is_read_as_it_was_written_wherever_it_is(tmp_path: Path) -> None:
    location = str(tmp_path / "a folder" / "table")
    df = pl.DataFrame({"key": ["a", "b"], "number": [1, None]})

    write_table(df, location)

    assert read_table(location).equals(df)


# Locations

KEYS = [
    *(["people"], ["crm", "people"], ["crm/people"], ["crm\\people"], ["crm\\", "people"]),
    *(["crm", "", "people"], ["crm", "people", ""], ["", "people"], [""], ["crm", "..", "people"]),
    *([".."], ["."], ["people", "_delta_log"], ["Orders"], ["crm%2Fpeople"]),
    *(["crm people"], ["crm%20people"], ["é"], ["e\u0301"], ["É"], ["😀"], ["!"], ["!080eople"]),
    *(["!p"], ["a=b"], ["a#b"], ["a?b"], ["a*b"], ["a:b"], ["a\nb"], ["a\0b"], ["people "]),
    *(["my.table"], ["my-table"], ["my_table"], [".people"], ["_people"], ["a" * 200]),
]


def user_string(parts: list[str]) -> str:
    """A key, as in `pipes.asset_key`."""
    return "/".join(part.replace("\\", "\\\\").replace("/", "\\/") for part in parts)


@pytest.mark.parametrize("key", ["people", "crm/people", "CRM/People", "my.table/a-b_c/2nd"])
@pytest.mark.parametrize("lake", ["gs://lake", "gs://lake/", "/data/lake", "/data/lake/"])
def test_a_plain_key_is_a_path_in_the_lake(lake: str, key: str) -> None:
    assert table_location(lake, key) == f"{lake.rstrip('/')}/{key}"


def test_different_keys_have_different_folders_in_the_lake(lake: str) -> None:
    locations = [table_location(lake, user_string(key)) for key in KEYS]

    for number, location in enumerate(locations):
        write_table(pl.DataFrame({"number": [number]}), location)

    assert [read_table(location).item() for location in locations] == list(range(len(KEYS)))
    tables = {name.split("/_delta_log/")[0] for name in objects(lake) if "/_delta_log/" in name}
    assert tables == {location.removeprefix(f"{lake}/") for location in locations}


KEY_PARTS = st.lists(st.text("aAsé!.0_/\\ %5K\u212a", max_size=3), min_size=1, max_size=3)


@given(one=KEY_PARTS, other=KEY_PARTS)
@example(["a"], ["a", ""])
def test_two_keys_never_share_a_location(one: list[str], other: list[str]) -> None:
    locations = [table_location("gs://lake", user_string(key)) for key in (one, other)]

    assert (locations[0] == locations[1]) == (one == other)
    assert all(re.fullmatch("gs://lake(/[A-Za-z0-9!._-]+)+", location) for location in locations)
    assert not any(set(location.split("/")) & {".", ".."} for location in locations)


# Names of columns, and values of partitions

NAMES = ["city name", "stad-naam", "2nd", "my.col", "Order", "select", 'a"b', "a'b", "a`b", "a\\b"]
NAMES += ["a,b", "a;b", "a/b", "a=b", "a%b", "a{b}", "a[0]", " a ", "--", "", "стад", "城市", "😀"]
VALUES = ["x' OR 'a' = 'a", "O'Brien", "'s-Hertogenbosch", "''", "'", '"', "\\", "\\'", "a\nb"]
VALUES += ["%", "%2F", "/", "=", "..", ".", "\0", "", " a", "a ", "null", "NULL", ";--", "😀"]
VALUES += ["__HIVE_DEFAULT_PARTITION__", "x" * 200, "a:b", "*", "e\u0301", "é", "_", "{}"]

# delta-rs can write these into a path and read them again. A folder's name has a maximum length.
columns = st.sampled_from(NAMES) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/:"), max_size=8
)
values = st.sampled_from(VALUES) | st.text(max_size=8)


# Reading


def test_only_the_columns_and_rows_that_are_asked_for_are_read(lake: str) -> None:
    location = f"{lake}/table"
    write_table(frame(id=[1, 2, 3], name=["a", "it's", "c"], size=[1.5, 2.5, None]), location)

    assert read_table(location, columns=["size", "id"], where="id > 2").rows() == [(None, 3)]
    assert read_table(location, where="name = 'it''s'")["id"].to_list() == [2]
    assert read_table(location, columns=["id"], where="false").schema == {"id": pl.Int64}


def test_a_table_is_read_lazily(lake: str) -> None:
    location = f"{lake}/table"
    write_table(frame(id=[1, 2, 3], name=["a", "b", "c"]), location)
    rows = scan_table(location, where="id > 1")

    assert rows.filter(pl.col("name") != "c").select("id").collect().rows() == [(2,)]
    assert rows.select(pl.len()).collect().item() == 2
    assert rows.head(1).collect().height == 1
    assert rows.collect_schema() == {"id": pl.Int64, "name": pl.String}


def test_a_table_that_does_not_exist_is_named(lake: str) -> None:
    with pytest.raises(TableNotFoundError, match=f"There is no table at {lake}/table. Materialize"):
        read_table(f"{lake}/table")


def test_a_condition_that_is_wrong_names_the_columns(lake: str) -> None:
    write_table(frame(id=[1]), f"{lake}/table")

    with pytest.raises(DeltaError, match=r"No field named day(.|\n)*scanned_table\.id"):
        read_table(f"{lake}/table", where="day = 1")


# Merging and appending


@given(
    key=columns,
    existing=st.dictionaries(st.integers(0, 9), st.text(max_size=3), max_size=6),
    new=st.dictionaries(st.integers(0, 9), st.text(max_size=3), max_size=6),
)
@settings(max_examples=50, deadline=None)
def test_rows_with_the_same_key_are_replaced_and_others_are_added(
    key: str, existing: dict[int, str], new: dict[int, str]
) -> None:
    assume("`" not in key)  # delta-rs cannot merge by such a column

    def rows(values: dict[int, str]) -> pl.DataFrame:
        schema = {key: pl.Int64, "the text": pl.String}
        return pl.DataFrame([[*values], [*values.values()]], schema=schema)

    with tempfile.TemporaryDirectory() as folder:
        location = f"{folder}/table"
        merge_table(rows(existing), location, key=key)
        merge_table(rows(new), location, key=[key])

        table = read_table(location)
        merged = zip(table.get_column(key), table.get_column("the text"), strict=True)
        assert sorted(merged) == sorted({**existing, **new}.items())


def test_rows_are_merged_by_several_columns(lake: str) -> None:
    location = f"{lake}/table"
    write_table(frame(shop=["a", "a", "b"], day=[1, 2, 1], sold=[1, 2, 3]), location)

    table = merge_table(
        frame(shop=["a", "b"], day=[2, 2], sold=[20, 30]), location, key=["shop", "day"]
    )

    assert sorted(read_table(location).rows()) == [
        *(("a", 1, 1), ("a", 2, 20), ("b", 1, 3), ("b", 2, 30)),
    ]
    assert (table.row_count, table.table_row_count) == (2, 4)


@pytest.mark.parametrize(
    ("df", "error"),
    [
        (frame(id=[1, 1, 2], n=[1, 2, 3]), "2 of 3 rows have the key of another row, such as .*1"),
        (frame(id=[1, None], n=[1, 2]), "column 'id' is null in 1 of 2 rows"),
        (frame(n=[1]), "'id' .* is missing"),
        (frame(id=[1], n=[1], m=[1]), "'m' .* is new"),
        (frame(id=["a"], n=[1]), "'id' is String, not Int64"),
    ],
)
def test_rows_that_cannot_be_merged_are_rejected(lake: str, df: pl.DataFrame, error: str) -> None:
    location = f"{lake}/table"
    write_table(frame(id=[1], n=[0]), location)

    with pytest.raises(WriteRefusedError, match=error):
        merge_table(df, location, key="id")

    assert read_table(location).rows() == [(1, 0)]


def test_a_new_table_without_the_key_is_rejected(lake: str) -> None:
    with pytest.raises(WriteRefusedError, match="no column 'id' to merge them by"):
        merge_table(frame(n=[1]), f"{lake}/table", key="id")

    assert not objects(lake)


def test_merges_at_the_same_time_are_all_there_once(lake: str) -> None:
    location = f"{lake}/table"

    def merge(number: int) -> None:
        merge_table(frame(id=[0, number + 1], n=[number] * 2), location, key="id")

    at_once(8, merge)

    assert sorted(read_table(location)["id"]) == list(range(9))


def test_rows_appended_at_the_same_time_are_all_there_once(lake: str) -> None:
    location = f"{lake}/table"

    at_once(8, lambda number: write_table(frame(n=[number] * 2), location, mode="append"))

    assert sorted(read_table(location)["n"]) == sorted([*range(8)] * 2)


def test_appended_rows_have_the_columns_of_the_table_unless_the_task_adds_some(lake: str) -> None:
    location = f"{lake}/table"
    write_table(frame(id=[1]), location, mode="append")

    with pytest.raises(WriteRefusedError, match=r"'name' .* is new"):
        write_table(frame(id=[2], name=["b"]), location, mode="append")
    write_table(frame(id=[2], name=["b"]), location, mode="append", on_schema_change="add_columns")

    assert sorted(read_table(location).select("id", "name").rows()) == [(1, None), (2, "b")]


def test_a_table_keeps_the_column_that_it_is_partitioned_by(lake: str) -> None:
    location = f"{lake}/table"
    write_partition(frame(key=["a"], n=[1]), location, column="key", value="a")

    with pytest.raises(WriteRefusedError, match="by 'key', which the rows do not have"):
        write_table(frame(n=[2]), location)
    with pytest.raises(WriteRefusedError, match=r"by .*'key'.*, not by 'n'"):
        write_partition(frame(key=["b"], n=[2]), location, column="n", value="2")
    write_table(frame(key=["b", "c"], n=[2, 3]), location)

    assert sorted(read_table(location).select("key", "n").rows()) == [("b", 2), ("c", 3)]


def test_an_error_that_is_no_conflict_is_raised_at_once(lake: str) -> None:
    location = f"{lake}/table"
    write_table(frame(n=[1]), location)
    DeltaTable(location).alter.set_table_properties({"delta.appendOnly": "true"})

    with pytest.raises(DeltaError, match="append-only") as error:
        write_table(frame(n=[2]), location)

    assert "others kept writing" not in str(error.value)


def test_a_merge_needs_a_key(lake: str) -> None:
    with pytest.raises(ValueError, match="no column to merge by"):
        merge_table(frame(n=[1]), f"{lake}/table", key=[])


def test_appending_cannot_replace_the_columns(lake: str) -> None:
    with pytest.raises(ValueError, match="Use add_columns or refuse"):
        write_table(frame(id=[2.5]), f"{lake}/table", mode="append", on_schema_change="replace")


def test_the_metadata_counts_the_whole_table_beside_the_partition(lake: str) -> None:
    location = f"{lake}/table"
    write_partition(frame(key=["a"] * 3, n=1), location, column="key", value="a")

    table = write_partition(frame(key=["b"] * 2, n=1), location, column="key", value="b")

    metadata: dict[str, Any] = {**table.metadata()}
    sizes = [DeltaTable(location).get_add_actions()["size_bytes"].to_pylist()]
    assert metadata["dagster/partition_row_count"]["raw_value"] == 2
    assert metadata["dagster/row_count"]["raw_value"] == 5
    assert metadata["table_files"]["raw_value"] == 2
    assert metadata["table_size_bytes"]["raw_value"] == sum(*sizes)


# Partitions


@given(column=columns, value=values, others=st.sets(values, min_size=3, max_size=3))
@settings(max_examples=200, deadline=None)
@example(column="city", value="x' OR 'a' = 'a", others={"a", "b", "c"})
@example(column="Order", value="", others={"'", "null", "a"})
def test_exactly_the_partition_is_replaced_whatever_its_column_and_value(
    column: str, value: str, others: set[str]
) -> None:
    kept = sorted(others - {value})[:2]
    with tempfile.TemporaryDirectory() as folder:
        location = f"{folder}/table"

        def write(partition: str, *numbers: int) -> None:
            rows = pl.DataFrame(
                {column: [partition] * len(numbers), "the number": numbers},
                schema={column: pl.String, "the number": pl.Int64},
            )
            write_partition(rows, location, column=column, value=partition)

        for partition in kept:
            write(partition, 1, 2)
        for numbers in ((3, 4), (5,)):
            write(value, *numbers)

        table = read_table(location)
        # Not `select`: it interprets `*`, and text between `^` and `$`, as patterns.
        rows = zip(table.get_column(column), table.get_column("the number"), strict=True)
        expected = [(partition, number) for partition in kept for number in (1, 2)] + [(value, 5)]
        assert sorted(rows) == sorted(expected)

        write(value)

        assert sorted(read_table(location)["the number"]) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("value", "text", "other"),
    [
        (DAY, "2026-01-01", "2026-01-02"),
        (NOON, "2026-01-01T12:00", "2026-01-02"),
        (UTC_NOON, "2026-01-01 12:00:00", "2026-01-02"),
        (UTC_NOON, "2026-01-01T13:00+01:00", "2026-01-02"),
        (7, "7", "8"),
        (-7, "-7", "7"),
        (True, "true", "false"),
    ],
)
def test_exactly_the_partition_is_replaced_whatever_its_type(
    lake: str, value: Any, text: str, other: str
) -> None:
    location = f"{lake}/table"
    write_partition(frame(key=[value, value], n=[1, 2]), location, column="key", value=text)
    write_partition(frame(key=[value], n=[3]), location, column="key", value=text)
    emptied = frame(key=[value], n=[4]).clear()

    write_partition(emptied, location, column="key", value=other)

    assert read_table(location).select("key", "n").rows() == [(value, 3)]


def test_a_partition_in_another_time_zone_is_the_same_instant(lake: str) -> None:
    location = f"{lake}/table"
    local = frame(key=[UTC_NOON]).select(pl.all().dt.convert_time_zone("Europe/Amsterdam"), n=1)

    for _ in range(2):
        write_partition(local, location, column="key", value="2026-01-01T13:00:00+01:00")

    assert read_table(location)["key"].to_list() == [UTC_NOON]


@pytest.mark.parametrize(
    ("df", "value", "error"),
    [
        (frame(key=["a", "b", "b"], n=1), "a", "column 'key' is 'b' in 2 of 3 rows"),
        (frame(key=["a", None], n=1), "a", "column 'key' is None in 1 of 2 rows"),
        (frame(key=[DAY], n=1), "2026-01-02", r"column 'key' is datetime.date\(2026, 1, 1\) in 1"),
        (frame(key=[1], n=1), "300000000000000000000000", "column 'key' is 1 in 1 of 1 rows"),
        (frame(other=["a"], n=1), "a", "no column 'key' to partition the table by"),
        (
            frame(key=[DAY], n=1),
            "1 January",
            "'1 January' is not a value of .* 'key', .* Date",
        ),
        (frame(key=[NOON], n=1), "2026-01-01T12:00Z", "not a value of .* 'key', .* Datetime"),
        (frame(key=[1], n=1), "one", "not a value of .* 'key', which is Int64"),
        (frame(key=[True], n=1), "yes", "not a value of .* 'key', which is Boolean"),
        (frame(key=[1.5], n=1), "1.5", "not a value of .* 'key', which is Float64"),
        (frame(key=[b"a"], n=1), "a", "not a value of .* 'key', which is Binary"),
        (frame(key=[Decimal("-1.5")], n=1), "-1.5", "not a value of .* 'key', which is Dec"),
    ],
)
def test_rows_of_another_partition_are_rejected(
    lake: str, df: pl.DataFrame, value: str, error: str
) -> None:
    with pytest.raises(WriteRefusedError, match=error):
        write_partition(df, f"{lake}/table", column="key", value=value)

    assert not objects(lake)


@pytest.mark.parametrize("column", ["a\nb", "a\tb", "../b", "a//b"])
def test_a_column_that_cannot_be_a_path_is_rejected(lake: str, column: str) -> None:
    location = f"{lake}/table"

    with pytest.raises(DeltaError, match="path segment"):
        write_partition(frame(**{column: ["a"]}, n=1), location, column=column, value="a")

    assert not objects(lake)


def test_a_column_may_be_named_like_the_scheme_of_a_url(tmp_path: Path) -> None:
    location = str(tmp_path / "table")

    for value, number in (("a", 1), ("b", 2), ("a", 3)):
        write_partition(frame(**{"a:b": value}, n=[number]), location, column="a:b", value=value)

    assert sorted(pl.read_delta(location).select("a:b", "n").rows()) == [("a", 3), ("b", 2)]


def test_a_table_with_other_partition_columns_is_not_changed(lake: str) -> None:
    location = f"{lake}/table"
    write_table(frame(key=["a"], n=[1]), location)

    with pytest.raises(WriteRefusedError, match="is partitioned by nothing, not by 'key'"):
        write_partition(frame(key=["a"], n=[2]), location, column="key", value="a")

    assert read_table(location).rows() == [("a", 1)]


# Writing at once


def test_partitions_written_at_once_are_all_there_once(lake: str) -> None:
    location = f"{lake}/table"
    keys = [f"{number:03}" for number in range(100)]

    def write(key: str) -> int:
        df = pl.DataFrame({"key": [key] * 3, "number": [1, 2, 3]})
        return write_partition(df, location, column="key", value=key).version

    with ThreadPoolExecutor(50) as pool:
        versions = list(pool.map(write, keys))

    assert sorted(versions) == list(range(100))
    assert sorted(read_table(location)["key"]) == sorted(keys * 3)


@pytest.mark.parametrize("first", [None, ["a"], ["b"], []], ids=str)
def test_concurrent_writers_of_one_partition_leave_the_rows_of_one(
    lake: str, first: list[str] | None
) -> None:
    for number in range(8):
        location = f"{lake}/{number}"
        if first is not None:
            rows = pl.DataFrame({"key": first, "n": 1}, schema={"key": pl.String, "n": pl.Int64})
            write_partition(rows, location, column="key", value="".join(first))

        def write(n: int, location: str = location) -> None:
            write_partition(frame(key=["a"] * 2, n=[n] * 2), location, column="key", value="a")

        at_once(2, write)  # a third write could hide a duplicate

        written = read_table(location).filter(key="a")["n"]
        assert written.len() == 2
        assert written.n_unique() == 1


@pytest.mark.parametrize("first", [None, [], [1, 2]], ids=str)
def test_concurrent_writers_of_one_table_leave_the_rows_of_one(
    lake: str, first: list[int] | None
) -> None:
    for number in range(8):
        location = f"{lake}/{number}"
        if first is not None:
            write_table(pl.DataFrame({"n": first}, schema={"n": pl.Int64}), location)

        def write(n: int, location: str = location) -> None:
            write_table(frame(n=[n] * 2), location)

        at_once(2, write)  # a third write could hide a duplicate

        assert read_table(location)["n"].len() == 2
        assert read_table(location)["n"].n_unique() == 1


def test_columns_added_at_the_same_time_are_all_there(lake: str) -> None:
    location = f"{lake}/table"

    def write(number: int) -> None:
        rows = frame(key=[f"{number}"], **{f"column {number}": [number]})
        write_partition(
            rows, location, column="key", value=f"{number}", on_schema_change="add_columns"
        )

    at_once(8, write)

    assert read_table(location).drop("key").sum_horizontal().sort().to_list() == list(range(8))
    assert read_table(location).width == 9


def test_a_write_that_keeps_conflicting_fails_after_the_timeout(tmp_path: Path) -> None:
    location = str(tmp_path / "table")
    write_partition(frame(key=["a"], n=[1]), location, column="key", value="a")
    # This simulates another writer that always commits this version first.
    (tmp_path / "table" / "_delta_log" / f"{1:020}.json").mkdir()

    with pytest.raises(CommitFailedError) as error:
        write_partition(frame(key=["b"], n=[2]), location, column="key", value="b", timeout=0.5)

    assert f"The table {location} could not be written within 0.5 s" in str(error.value)
    assert "others kept writing to it: Failed to commit" in str(error.value)
    assert read_table(location).rows() == [("a", 1)]


# Types


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        (series(pl.Int64, 1), series(pl.Float64, 2.0, 2.5)),
        (series(pl.Int64, 1), series(pl.Float64, float("nan"))),
        (series(pl.Int64, 1), series(pl.Float64, 1e300)),
        (series(pl.Int64, 1), series(pl.UInt64, 2**63)),
        (series(pl.Int64, 1), series(pl.Decimal(10, 2), Decimal("2.50"))),
        (series(pl.Int64, 1), series(pl.String, "2")),
        (series(pl.Int64, 1), series(pl.Boolean, True)),
        (series(pl.Int64, 1), series(pl.Date, DAY)),
        (series(pl.Int8, 1), series(pl.Int64, 300)),
        (series(pl.Float64, 1.0), series(pl.Int64, 2**53 + 1)),
        (series(pl.Float64, 1.0), series(pl.Int64, 2**63 - 1)),
        (series(pl.Float32, 1.0), series(pl.Float64, 0.1)),
        (series(pl.Float32, 1.0), series(pl.Float64, 1e300)),
        (series(pl.Decimal(10, 1), Decimal("1.5")), series(pl.Decimal(10, 2), Decimal("1.25"))),
        (series(pl.Decimal(4, 2), Decimal("1.5")), series(pl.Int64, 100)),
        (series(pl.Date, DAY), series(pl.Datetime("us"), NOON)),
        (series(pl.Date, DAY), series(pl.String, "2026-01-01")),
        (series(pl.Datetime("us"), NOON), series(pl.Datetime("ns"), 1)),
        (series(pl.Datetime("us"), NOON), series(pl.Datetime("us", "UTC"), UTC_NOON)),
        (series(pl.Datetime("us", "UTC"), UTC_NOON), series(pl.Datetime("us"), NOON)),
        (series(pl.String, "a"), series(pl.Int64, 1)),
        (series(pl.String, "a"), series(pl.Binary, b"a")),
        (series(pl.Boolean, True), series(pl.Int64, 1)),
        (series(pl.List(pl.Int64), [1]), series(pl.List(pl.Float64), [1.0], [1.5])),
        (series(pl.List(pl.Int64), [1]), series(pl.Array(pl.Float64, 1), [1.5])),
        (
            series(pl.Struct({"a": pl.Int8}), {"a": 1}),
            series(pl.Struct({"a": pl.Int64}), {"a": 300}),
        ),
        (STRUCT, series(pl.Struct({"b": pl.Int8}), {"b": 1})),
        (
            series(pl.Struct({"a": pl.Int8, "b": pl.Int8}), {"a": 1, "b": 2}),
            series(pl.Struct({"b": pl.Int8, "a": pl.Int8}), {"a": 1, "b": 2}),
        ),
    ],
    ids=lambda values: str(values.to_list()),
)
def test_a_lossy_cast_is_rejected_with_its_column(
    lake: str, stored: pl.Series, written: pl.Series
) -> None:
    location = f"{lake}/table"
    write_partition(frame(key="a", amount=stored), location, column="key", value="a")
    before = read_table(location)

    df = frame(key="a", amount=written)
    with pytest.raises(WriteRefusedError, match=r"'amount'.*Nothing was written"):
        write_partition(df, location, column="key", value="a")
    with pytest.raises(WriteRefusedError, match=r"'amount'.*Nothing was written"):
        write_table(df, location, on_schema_change="add_columns")

    assert read_table(location).equals(before)
    assert DeltaTable(location).version() == 0


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        (series(pl.Int64, 1), series(pl.Int32, 2, None)),
        (series(pl.Int32, 1), series(pl.Int64, 2)),
        (series(pl.Int64, 1), series(pl.UInt64, 2)),
        (series(pl.Int64, 1), series(pl.Float64, 2.0)),
        (series(pl.Float64, 1.0), series(pl.Int64, 2**53)),
        (series(pl.Float64, 1.0), series(pl.Float32, 0.1, float("nan"), None)),
        (series(pl.Float32, 1.0), series(pl.Float64, 0.5, float("inf"))),
        (series(pl.Decimal(12, 4), Decimal("1.5")), series(pl.Decimal(10, 2), Decimal("1.25"))),
        (series(pl.Datetime("us"), NOON), series(pl.Date, DAY)),
        (series(pl.Datetime("us"), NOON), series(pl.Datetime("ns"), NOON)),
        (series(pl.Date, DAY), series(pl.Datetime("us"), dt.datetime(2026, 1, 2))),
        (series(pl.String, "a"), series(pl.Categorical, "b", None)),
        (series(pl.Int64, 1), series(pl.Null, None)),
        (series(pl.List(pl.String), ["a"]), series(pl.List(pl.Null), [])),
        (
            series(pl.Struct({"a": pl.Int64}), {"a": 1}),
            series(pl.Struct({"a": pl.Int8}), {"a": 2}, None),
        ),
    ],
    ids=lambda values: str(values.to_list()),
)
def test_a_lossless_cast_is_made(lake: str, stored: pl.Series, written: pl.Series) -> None:
    location = f"{lake}/table"
    write_partition(frame(key="a", amount=stored), location, column="key", value="a")

    write_partition(frame(key="a", amount=written), location, column="key", value="a")

    amount = read_table(location)["amount"]
    assert amount.dtype == stored.dtype
    assert amount.cast(written.dtype).equals(written, null_equal=True)


@pytest.mark.parametrize(
    ("written", "dtype"),
    [
        (series(pl.Categorical, "a", None), pl.String),
        (series(pl.Enum(["a", "b"]), "b"), pl.String),
        (series(pl.List(pl.Categorical), ["a"]), pl.List(pl.String)),
        (series(pl.Struct({"a": pl.Enum(["a"])}), {"a": "a"}), pl.Struct({"a": pl.String})),
        (series(pl.UInt8, 2**8 - 1), pl.Int16),
        (series(pl.UInt16, 2**16 - 1), pl.Int32),
        (series(pl.UInt32, 2**32 - 1), pl.Int64),
        (series(pl.List(pl.UInt32), [2**32 - 1]), pl.List(pl.Int64)),
        (series(pl.Array(pl.Int64, 2), [1, 2]), pl.List(pl.Int64)),
        (series(pl.Datetime("ms"), NOON), pl.Datetime("us")),
        (series(pl.Datetime("ns"), NOON), pl.Datetime("us")),
        (
            series(pl.Datetime("us", "UTC"), UTC_NOON).dt.convert_time_zone("Europe/Amsterdam"),
            pl.Datetime("us", "UTC"),
        ),
        *(
            (series(dtype, value), dtype)
            for dtype, value in (
                *((pl.Int8, 1), (pl.Int64, 2**62), (pl.Float32, 0.5), (pl.Float64, 0.1)),
                *((pl.Boolean, True), (pl.String, "a"), (pl.Binary, b"a"), (pl.Date, DAY)),
                *((pl.Datetime("us"), NOON), (pl.Decimal(38, 10), Decimal("1.5"))),
                *((pl.List(pl.List(pl.Int8)), [[1]]), (pl.Struct({"a": pl.Int8}), {"a": 1})),
            )
        ),
    ],
    ids=lambda value: str(value.dtype if isinstance(value, pl.Series) else value),
)
def test_a_type_is_stored_as_one_that_holds_all_its_values(
    lake: str, written: pl.Series, dtype: pl.DataType
) -> None:
    location = f"{lake}/table"

    table = write_table(frame(value=written), location)

    value = read_table(location)["value"]
    assert value.dtype == table.schema["value"] == dtype
    assert value.to_list() == written.to_list()


@pytest.mark.parametrize(
    ("written", "advice", "cast"),
    [
        (series(pl.UInt64, 2**64 - 1), "Int64, or to Decimal(20, 0)", pl.Decimal(20, 0)),
        (series(pl.Int128, 1), "Int64, or to Decimal(38, 0)", pl.Int64),
        (series(pl.Int128, 2**70), "Int64, or to Decimal(38, 0)", pl.Decimal(38, 0)),
        (series(pl.Time, dt.time(1)), "String, or to Int64", pl.String),
        (series(pl.Duration("us"), dt.timedelta(1)), "Int64", pl.Int64),
        (series(pl.Null, None), "the type that its values will have", pl.Float64),
        (series(pl.List(pl.Null), []), "the type that its values will have", pl.List(pl.String)),
        (series(pl.List(pl.Time), [dt.time(1)]), "String", pl.List(pl.String)),
        (series(pl.Struct({"a": pl.UInt64}), {"a": 1}), "Int64", pl.Struct({"a": pl.Int64})),
        (series(pl.Object, object()), "String", None),
        (series(pl.Struct({}), {}), "String", None),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
def test_a_type_that_delta_lacks_is_rejected_with_what_to_cast_it_to(
    lake: str, written: pl.Series, advice: str, cast: Any
) -> None:
    location = f"{lake}/table"

    with pytest.raises(WriteRefusedError) as error:
        write_table(frame(value=written), location)

    assert str(error.value).startswith("The column 'value' has the type ")
    assert f"Cast it to {advice}" in str(error.value)
    assert not objects(lake)
    if cast is not None:
        write_table(frame(value=written.cast(cast)), location)


def test_nanoseconds_are_not_cut_off(lake: str) -> None:
    with pytest.raises(WriteRefusedError, match=r"'at'.* loss: .*00:00:00.000000001 would change"):
        write_table(frame(at=series(pl.Datetime("ns"), 1)), f"{lake}/table")


# Columns


def test_other_columns_are_rejected_unless_the_task_allows_them(lake: str) -> None:
    location = f"{lake}/table"
    write_partition(frame(key=["a"], n=[1], old=[1], same=[1]), location, column="key", value="a")
    changed = frame(key=["a"], n=["one"], same=[2], new=[True])

    pattern = (
        r"^The columns do not match the table .*/table: 'new' \(Boolean\) is new, "
        r"'old' \(Int64\) is missing, 'n' is String, not Int64\. Nothing was written\."
    )
    with pytest.raises(WriteRefusedError, match=pattern):
        write_partition(changed, location, column="key", value="a")
    with pytest.raises(WriteRefusedError, match=pattern):
        write_table(changed, location, on_schema_change="refuse")

    assert read_table(location).select("key", "n", "old", "same").rows() == [("a", 1, 1, 1)]


@pytest.mark.parametrize("df", [frame(key=["a"], new=[1]), frame(key=["a"])], ids=["new", "fewer"])
def test_a_partition_with_other_columns_is_rejected_by_default(lake: str, df: pl.DataFrame) -> None:
    location = f"{lake}/table"
    write_partition(frame(key=["a"], old=[1]), location, column="key", value="a")

    with pytest.raises(WriteRefusedError, match="pass on_schema_change='add_columns'"):
        write_partition(df, location, column="key", value="a")


def test_a_partition_can_add_columns(lake: str) -> None:
    location = f"{lake}/table"
    write_partition(frame(key=["a"], old=[1]), location, column="key", value="a")

    table = write_partition(
        frame(new=series(pl.UInt32, 2, 2), key="b"),
        location,
        column="key",
        value="b",
        on_schema_change="add_columns",
    )

    assert table.schema == {"key": pl.String, "old": pl.Int64, "new": pl.Int64}
    rows = read_table(location).select("key", "old", "new").rows()
    assert sorted(rows) == [("a", 1, None), ("b", None, 2), ("b", None, 2)]


def test_a_table_gets_the_columns_of_its_rows_or_adds_them_as_the_task_says(lake: str) -> None:
    location = f"{lake}/table"
    write_table(frame(old=[1]), location)

    write_table(frame(new=["a"]), location, on_schema_change="add_columns")
    assert read_table(location).rows(named=True) == [{"old": None, "new": "a"}]

    write_table(frame(new=[2.5]), location)
    assert read_table(location).rows(named=True) == [{"new": 2.5}]


@pytest.mark.parametrize("existing", [{}, {"name": ["a"]}], ids=["rows", "table"])
def test_columns_that_differ_only_in_case_are_rejected(lake: str, existing: dict[str, Any]) -> None:
    location = f"{lake}/table"
    if existing:
        write_table(frame(**existing), location)

    with pytest.raises(WriteRefusedError, match=r"\['name', 'Name'\] differ only in case"):
        write_table(frame(name=["a"], Name=["b"]), location, on_schema_change="add_columns")


def test_the_order_of_the_columns_does_not_matter(lake: str) -> None:
    location = f"{lake}/table"
    write_partition(frame(key=["a"], x=[1], y=[2]), location, column="key", value="a")

    write_partition(frame(y=[4], x=[3], key=["a"]), location, column="key", value="a")

    assert read_table(location).select("key", "x", "y").rows() == [("a", 3, 4)]
