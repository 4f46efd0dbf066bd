"""Serializes the event of a call, once for all its attempts, as the body of the request."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dagster_pipes import PipesContextData, encode_param

Event = Mapping[str, Any]
"""The inputs of a task: a JSON object."""

_MEBIBYTE = 1024 * 1024
_LARGEST_BODY = 32 * _MEBIBYTE  # bytes; the limit of Cloud Run over HTTP/1
_MESSAGE_PARAMETERS = 1024  # bytes, at most: the bucket of the messages and their key prefixes


class EventError(Exception):
    """The event cannot be sent: an input is not JSON serializable, or the event is too large."""


def serialize(event: Event, context_data: PipesContextData | None) -> bytes:
    """The event as JSON.

    Args:
        event: The inputs of the task.
        context_data: The Pipes context, if it is sent in the body, for the size of the request.

    Raises:
        EventError: An input is not JSON serializable, or the body is too large for Google Cloud.
    """
    inputs = _serialize_inputs(event)
    body = _object(inputs.values())
    context_size = 0 if context_data is None else len(encode_param({"data": context_data}))
    size = len(body) + context_size + _MESSAGE_PARAMETERS
    if size > _LARGEST_BODY:
        sizes = {f"input {name!r}": len(text) for name, text in inputs.items()}
        sizes["part, the Pipes context with the `extras`,"] = context_size
        largest = max(sizes, key=lambda name: sizes[name])
        raise EventError(
            f"The event is too large: it has {_mebibytes(size)}, and a request to Google Cloud may "
            f"have {_mebibytes(_LARGEST_BODY)}. Its largest {largest} has "
            f"{_mebibytes(sizes[largest])}. Store that in a bucket, and pass its location."
        )
    return body


def to_json(event: Event) -> bytes:
    """The event as JSON.

    Args:
        event: The inputs of the task.

    Raises:
        EventError: An input is not JSON serializable.
    """
    return _object(_serialize_inputs(event).values())


def request_body(event: bytes, parameters: Mapping[str, object]) -> bytes:
    """The body of a request: the event and the parameters of Pipes.

    Args:
        event: The event, from `serialize`.
        parameters: The names and values of the parameters.
    """
    added = json.dumps(parameters).encode()
    return _object(part for part in (event[1:-1], added[1:-1]) if part)


def _object(members: Iterable[bytes]) -> bytes:
    return b"{" + b", ".join(members) + b"}"


def _serialize_inputs(event: Event) -> dict[str, bytes]:
    return {name: _serialize_input(name, value) for name, value in event.items()}


def _serialize_input(name: str, value: object) -> bytes:
    """`"name": value`, a member of a JSON object."""
    try:
        return json.dumps({name: value}, allow_nan=False)[1:-1].encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EventError(
            f"The event's input {name!r} is not JSON serializable: {error}."
        ) from error


def _mebibytes(size: int) -> str:
    return f"{size / _MEBIBYTE:.1f} MiB"
