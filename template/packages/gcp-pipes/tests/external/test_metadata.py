"""Metadata of Python types."""

import datetime as dt
import math
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import polars as pl
import pytest
from dagster_pipes import DagsterPipesError

from gcp_pipes.external.metadata import typed_metadata

NOON = dt.datetime(2026, 5, 1, 12, 0, 0, 1)
ID = UUID(int=1)


class Color(Enum):
    """An enumeration."""

    RED = "red"


@pytest.mark.parametrize(
    ("value", "kind", "raw_value"),
    [
        (3, "__infer__", 3),
        ("text", "__infer__", "text"),
        (True, "__infer__", True),
        (None, "__infer__", None),
        (dt.date(2026, 5, 1), "__infer__", "2026-05-01"),
        (NOON, "__infer__", "2026-05-01T12:00:00.000001"),
        (NOON.replace(tzinfo=dt.UTC), "timestamp", 1777636800.000001),
        (dt.time(12, 30), "__infer__", "12:30:00"),
        (dt.timedelta(days=1, seconds=1), "__infer__", "1 day, 0:00:01"),
        (Decimal("1.10"), "__infer__", 1.1),
        (Decimal("0.12345678901234567890"), "__infer__", "0.12345678901234567890"),
        (ID, "__infer__", str(ID)),
        (Path("/lake/people"), "path", "/lake/people"),
        (Color.RED, "__infer__", "red"),
        (np.int64(3), "__infer__", 3),
        (np.float32(0.5), "__infer__", 0.5),
        (np.bool_(True), "__infer__", True),
        (np.str_("text"), "__infer__", "text"),
        (
            np.datetime64("2026-05-01T12:00:00.000000001"),
            "__infer__",
            "2026-05-01T12:00:00.000000001",
        ),
        (np.array([1, 2]), "__infer__", [1, 2]),
        (pl.Series([dt.date(2026, 5, 1)]).max(), "__infer__", "2026-05-01"),
        (pl.Series([[1, 2]])[0], "__infer__", [1, 2]),
        (pl.Series([Decimal("2.5")]).sum(), "__infer__", 2.5),
        ((1, ID), "__infer__", [1, str(ID)]),
        ({"days": [dt.date(2026, 5, 1)]}, "json", {"days": ["2026-05-01"]}),
        ({"type": "int", "raw_value": np.int32(3)}, "int", 3),
        ({"type": "float", "raw_value": 3}, "float", 3),
        (
            {"type": "timestamp", "raw_value": NOON.replace(tzinfo=dt.UTC)},
            "timestamp",
            1777636800.000001,
        ),
        ({"type": "path", "raw_value": Path("/lake")}, "path", "/lake"),
        ({"type": "md", "raw_value": "**bold**"}, "md", "**bold**"),
    ],
)
def test_a_value_is_converted_to_json(value: Any, kind: str, raw_value: Any) -> None:
    assert typed_metadata({"key": value}) == {"key": {"type": kind, "raw_value": raw_value}}


@pytest.mark.parametrize(
    "value", [b"bytes", {1, 2}, object(), 1j, math.nan, np.float64("inf"), [math.nan], lambda: 1]
)
def test_an_unsupported_value_is_an_error_with_its_key(value: Any) -> None:
    with pytest.raises(DagsterPipesError, match="value 'key' is not JSON serializable: "):
        typed_metadata({"fine": 1, "key": value})


@pytest.mark.parametrize(
    ("kind", "raw_value", "error"),
    [
        ("int", "abc", "'key' must be a whole number to be of the type 'int'; it is 'abc'"),
        ("int", 1.5, "must be a whole number"),
        ("int", True, "must be a whole number"),
        ("float", "1", "must be a number"),
        ("bool", 1, "must be true or false"),
        ("text", 1, "must be text"),
        ("url", None, "must be text"),
        ("null", 0, "must be None"),
        ("timestamp", NOON.isoformat(), "must be a number"),
    ],
)
def test_a_value_of_a_wrong_type_is_an_error_with_its_key(
    kind: str, raw_value: Any, error: str
) -> None:
    with pytest.raises(DagsterPipesError, match=f"The metadata value 'key' must .*{error}|{error}"):
        typed_metadata({"key": {"type": kind, "raw_value": raw_value}})


def test_a_key_that_is_not_text_is_an_error() -> None:
    with pytest.raises(DagsterPipesError, match="must be text; it is 3"):
        typed_metadata({3: "three"})  # type: ignore[dict-item]
