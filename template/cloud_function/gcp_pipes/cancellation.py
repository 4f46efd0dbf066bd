"""How Dagster, when a run is terminated, tells the function to end the calls that it made for it.

A call runs in one instance of the function, and the word of its end reaches any. What all of them
have in common is the messages bucket, in which they may create objects, and neither read nor
overwrite any. So the instance that is told takes the name of the call's next chunk of messages; the
one that is at work finds the name taken when it has something to say, and knows.
"""

import json
from collections.abc import Mapping
from typing import Any

from dagster_pipes import PIPES_PROTOCOL_VERSION, PIPES_PROTOCOL_VERSION_FIELD
from google.api_core.exceptions import PreconditionFailed
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from werkzeug.exceptions import BadRequest

from gcp_pipes.storage import create_object

_PARAMETER = "DAGSTER_PIPES_CANCEL"  # as pipes/call.py of the orchestrator says it
_MOST_CHUNKS = 100  # that a call may store while it is being cancelled
_TIMEOUT = 10.0  # seconds without an answer from Cloud Storage

_MESSAGE = {
    PIPES_PROTOCOL_VERSION_FIELD: PIPES_PROTOCOL_VERSION,
    "method": "log",
    "params": {"message": "The function has been told to end this call", "level": "WARNING"},
}


def is_cancellation(event: Mapping[str, Any]) -> bool:
    """Whether an event is no call, but the word that others are to end.

    Args:
        event: The body of a request: a JSON object.
    """
    return _PARAMETER in event


def cancel_calls(event: Mapping[str, Any], bucket: storage.Bucket) -> None:
    """Let the calls that the event names know that they are to end.

    Args:
        event: The event: a list of calls, each with the `bucket` and the `key_prefix` of its
            messages, and with the number of the `next_chunk` that Dagster expects.
        bucket: The messages bucket.

    Raises:
        BadRequest: The event names something else.
    """
    for call in event[_PARAMETER]:
        match call:
            case {"bucket": bucket.name, "key_prefix": str(key_prefix), "next_chunk": int(chunk)}:
                _take_next_chunk(bucket, key_prefix, chunk)
            case _:
                raise BadRequest(f"{call!r:.200} is no call with messages in gs://{bucket.name}.")


def _take_next_chunk(bucket: storage.Bucket, key_prefix: str, expected: int) -> None:
    create = DEFAULT_RETRY.with_timeout(_TIMEOUT)(create_object)
    for chunk in range(expected, expected + _MOST_CHUNKS):
        try:
            create(
                bucket.blob(f"{key_prefix}/{chunk}.json"), json.dumps(_MESSAGE), timeout=_TIMEOUT
            )
        except PreconditionFailed:  # the call has stored more than Dagster had read
            continue
        return
