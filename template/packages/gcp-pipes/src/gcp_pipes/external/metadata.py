"""Converts Python values to metadata of assets and checks."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from dagster_pipes import (
    PIPES_METADATA_TYPE_INFER,
    DagsterPipesError,
    PipesMetadataValue,
    to_asset_key_path,
)

_NUMBER: tuple[str, set[type]] = ("a number", {float, int})
_TEXT: tuple[str, set[type]] = ("text", {str})
_EXPECTED: dict[str, tuple[str, set[type]]] = {
    "bool": ("true or false", {bool}),
    "float": _NUMBER,
    "int": ("a whole number", {int}),
    "null": ("None", {type(None)}),
    "timestamp": _NUMBER,
    **dict.fromkeys(("asset", "dagster_run", "md", "notebook", "path", "text", "url"), _TEXT),
}
"""What the raw value of each Pipes type must be. Dagster checks the types that are not here."""


def typed_metadata(metadata: Mapping[str, Any]) -> dict[str, PipesMetadataValue]:
    """The metadata as JSON, each value with its Pipes type."""
    return {_checked_key(key): _typed(key, value) for key, value in metadata.items()}


def column_lineage(lineage: Mapping[str, Sequence[tuple[str, str]]]) -> PipesMetadataValue:
    """The lineage of columns, as Dagster shows it.

    Args:
        lineage: For each column, the columns that it is made from: an asset key and a column.
    """
    deps = {
        column: [
            {"asset_key": to_asset_key_path(asset_key), "column_name": name}
            for asset_key, name in sources
        ]
        for column, sources in lineage.items()
    }
    return {"type": "table_column_lineage", "raw_value": {"deps_by_column": deps}}


def to_json(name: str, value: Any) -> Any:
    """The value with JSON types only. Errors call it `name`."""
    try:
        return json.loads(json.dumps(value, default=_convert, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise DagsterPipesError(
            f"{name} is not JSON serializable: {error}. It is {value!r:.200}."
        ) from error


def _checked_key(key: Any) -> str:
    if not isinstance(key, str):
        raise DagsterPipesError(f"The key of a metadata value must be text; it is {key!r}.")
    return key


def _typed(key: str, value: Any) -> PipesMetadataValue:
    kind = PIPES_METADATA_TYPE_INFER
    if isinstance(value, Mapping) and value.keys() == {"type", "raw_value"}:
        kind, value = value["type"], value["raw_value"]
    elif isinstance(value, Mapping):
        kind = "json"
    elif isinstance(value, PurePath):
        kind = "path"
    elif isinstance(value, datetime) and value.tzinfo is not None:
        kind = "timestamp"
    if kind == "timestamp" and isinstance(value, datetime):
        value = value.timestamp()
    raw_value = to_json(f"The metadata value {key!r}", value)
    expected, types = _EXPECTED.get(kind, ("", {type(raw_value)}))
    if type(raw_value) not in types:
        raise DagsterPipesError(
            f"The metadata value {key!r} must be {expected} to be of the type {kind!r}; it is "
            f"{value!r:.200}."
        )
    return {"type": kind, "raw_value": raw_value}  # type: ignore[typeddict-item]


def _convert(value: Any) -> Any:
    """Convert a value that `json` cannot; `json` converts the result further if needed."""
    match value:
        case date() | time():
            return value.isoformat()
        case UUID() | PurePath() | timedelta():
            return str(value)
        case Decimal():
            number = float(value)
            exact = math.isfinite(number) and Decimal(repr(number)) == value
            return number if exact else str(value)
        case Enum():
            return value.value
    if str(getattr(value, "dtype", "")).startswith(("datetime64", "timedelta64")):
        return str(value)  # NumPy's may be more precise than Python's
    for conversion in ("tolist", "to_list"):
        if hasattr(value, conversion):
            return getattr(value, conversion)()
    raise TypeError(f"Values of the type {type(value).__name__} are not supported")
