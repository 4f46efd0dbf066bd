"""The event of a call, as the body of its request: serialized once, however often it is sent."""

import json
from collections.abc import Mapping
from typing import Any

from dagster_pipes import PipesContextData, encode_param

Event = Mapping[str, Any]
"""The inputs of a task: a JSON object."""

_MEBIBYTE = 1024 * 1024
_LARGEST_BODY = 32 * _MEBIBYTE  # bytes that Cloud Run takes over HTTP/1
_PLACE_OF_MESSAGES = 1024  # bytes, at most, of the parameters that say where messages go


class EventError(Exception):
    """The event cannot be sent: an input is no JSON, or all of it is too large."""


def serialize(event: Event, context_data: PipesContextData | None) -> bytes:
    """The event as JSON, before any request is made with it.

    Args:
        event: The inputs of the task.
        context_data: The Pipes context, if it is to be in the body too.

    Raises:
        EventError: An input is no JSON, or the body would be larger than Google Cloud takes.
    """
    inputs = {name: _serialize_input(name, value) for name, value in event.items()}
    body = b"{" + b", ".join(inputs.values()) + b"}"
    context_size = 0 if context_data is None else len(encode_param({"data": context_data}))
    size = len(body) + context_size + _PLACE_OF_MESSAGES
    if size > _LARGEST_BODY:
        sizes = {f"input {name!r}": len(text) for name, text in inputs.items()}
        sizes["part, the Pipes context with the `extras`,"] = context_size
        largest = max(sizes, key=lambda name: sizes[name])
        raise EventError(
            f"The event is too large: {_mebibytes(size)}, of the {_mebibytes(_LARGEST_BODY)} that "
            f"Google Cloud takes in a request. Its largest {largest} has "
            f"{_mebibytes(sizes[largest])}. Store that in a bucket, and pass its location."
        )
    return body


def request_body(event: bytes, parameters: Mapping[str, object]) -> bytes:
    """The body of a request: the event, and the parameters of Pipes.

    Args:
        event: What `serialize` returned.
        parameters: Names and values to add.
    """
    added = json.dumps(parameters).encode()
    members = [part for part in (event[1:-1], added[1:-1]) if part]
    return b"{" + b", ".join(members) + b"}"


def _serialize_input(name: str, value: object) -> bytes:
    """`"name": value`, as it stands in a JSON object."""
    try:
        return json.dumps({name: value}, allow_nan=False)[1:-1].encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EventError(
            f"The event must be a JSON object, and its input {name!r} is no JSON: {error}."
        ) from error


def _mebibytes(size: int) -> str:
    return f"{size / _MEBIBYTE:.1f} MiB"
