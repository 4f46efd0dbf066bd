"""Python values as metadata: what Dagster shows of an asset or a check."""

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from dagster_pipes import PIPES_METADATA_TYPE_INFER, DagsterPipesError, PipesMetadataValue

_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "float": (float, int),
    "int": (int,),
    "null": (type(None),),
    "timestamp": (float, int),
    **dict.fromkeys(("asset", "dagster_run", "md", "notebook", "path", "text", "url"), (str,)),
}
"""What the raw value of a metadata type is; Dagster itself checks those that are not listed."""


def typed_metadata(metadata: Mapping[str, Any]) -> dict[str, PipesMetadataValue]:
    """The metadata as JSON, each value with its Pipes type.

    Besides JSON's own values, it takes `datetime`, which becomes a timestamp if it has a time zone,
    `Path`, which becomes a path, `date`, `time`, `timedelta`, `UUID` and `Enum`, which become text,
    `Decimal`, which becomes a number, or text if it has too many digits for one, and the scalars,
    arrays and series of NumPy, Polars and pandas. They may also be in lists and dictionaries.

    Args:
        metadata: Values as they are, or each with its Pipes type, as `type` and `raw_value`.

    Raises:
        DagsterPipesError: A value has no JSON form, or is not of the type that is given. The error
            names its key.
    """
    return {_checked_key(key): _typed(key, value) for key, value in metadata.items()}


def as_json(name: str, value: Any) -> Any:
    """The value with what JSON has, and nothing else.

    Args:
        name: What to call the value in an error.
        value: A value that may hold those that `typed_metadata` takes.

    Raises:
        DagsterPipesError: It holds a value that has no JSON form, a number that is not finite, or
            itself.
    """
    try:
        return json.loads(json.dumps(value, default=_json_form, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise DagsterPipesError(
            f"{name} has no JSON form: {error}. It is {value!r:.200}."
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
    raw_value = as_json(f"The metadata value {key!r}", value)
    kinds = _KINDS.get(kind)
    if kinds and type(raw_value) not in kinds:
        raise DagsterPipesError(
            f"The metadata value {key!r} must be {_name(kinds)} to be of the type {kind!r}; it is "
            f"{value!r:.200}."
        )
    return {"type": kind, "raw_value": raw_value}  # type: ignore[typeddict-item]


def _json_form(value: Any) -> Any:
    """What JSON has for a value that is none of its own; `json` calls it again with the result."""
    match value:
        case date() | time():
            return value.isoformat()
        case UUID() | PurePath() | timedelta():
            return str(value)
        case Decimal():
            return _number_or_text(value)
        case Enum():
            return value.value
    if str(getattr(value, "dtype", "")).startswith(("datetime64", "timedelta64")):
        return str(value)  # NumPy's may be more precise than Python's
    for conversion in ("tolist", "to_list"):
        if hasattr(value, conversion):
            return getattr(value, conversion)()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _number_or_text(value: Decimal) -> float | str:
    number = float(value)
    if math.isfinite(number) and Decimal(repr(number)) == value:
        return number
    return str(value)


def _name(kinds: tuple[type, ...]) -> str:
    names = {str: "text", int: "a whole number", bool: "true or false", type(None): "None"}
    return "a number" if float in kinds else names[kinds[0]]
