"""Ends the calls whose function has died, so Dagster does not wait for them.

A function that dies cannot close its messages, and Dagster would wait for them until the timeout of
the call. Here, the process that serves the function closes them, in the emulated bucket.
"""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from dagster_pipes import PIPES_PROTOCOL_VERSION, PIPES_PROTOCOL_VERSION_FIELD
from local_cloud.processes import local_opener

_MOST_CHUNKS = 100  # of a call that may have been stored since they were listed


def end_calls(storage: Mapping[str, str], function: str, reason: str) -> int:
    """Close the messages of all calls that a function left open, with an exception.

    Calls that start meanwhile are left alone.

    Args:
        storage: The variables that `cloud_storage` yielded.
        function: The name of the function, as in its messages.
        reason: Why the function died.

    Returns:
        How many calls there were.
    """
    died = datetime.now(UTC)
    bucket = f"{storage['STORAGE_EMULATOR_HOST']}/storage/v1/b/{storage['MESSAGES_BUCKET']}/o"
    chunks: dict[str, dict[int, datetime]] = defaultdict(dict)
    for item in _list_objects(bucket):
        if match := re.fullmatch(r"(.+)/(\d+)\.json", item["name"]):
            chunks[match[1]][int(match[2])] = datetime.fromisoformat(item["timeCreated"])
    count = 0
    for key_prefix, created in chunks.items():
        if created.get(1, died) >= died:
            continue
        number = _next_message(bucket, key_prefix, created)
        if number and _function_of(bucket, key_prefix) == function:
            _close(bucket, key_prefix, max(created), number, reason)
            count += 1
    return count


def _list_objects(bucket: str) -> Iterator[dict[str, Any]]:
    page: str | None = ""
    while page is not None:
        with local_opener().open(f"{bucket}?pageToken={page}", timeout=10) as response:
            found = json.load(response)
        yield from found.get("items", [])
        page = found.get("nextPageToken")


def _function_of(bucket: str, key_prefix: str) -> str | None:
    """The name of the function that runs a call."""
    opened = _read_chunk(bucket, key_prefix, 1)[0]
    name: str | None = (opened["params"].get("extras") or {}).get("function_name")
    return name


def _next_message(bucket: str, key_prefix: str, chunks: Iterable[int]) -> int | None:
    """The number of the next message of a call; None if its messages are closed."""
    for chunk in sorted(chunks, reverse=True):
        message = _read_chunk(bucket, key_prefix, chunk)[-1]
        if message["method"] == "closed":
            return None
        if number := message.get("number"):  # that of a request to cancel has none
            return int(number) + 1
    return 1


def _read_chunk(bucket: str, key_prefix: str, chunk: int) -> list[dict[str, Any]]:
    name = urllib.parse.quote(f"{key_prefix}/{chunk}.json", safe="")
    with local_opener().open(f"{bucket}/{name}?alt=media", timeout=10) as response:
        return [json.loads(line) for line in response.read().splitlines()]


def _close(bucket: str, key_prefix: str, last_chunk: int, number: int, reason: str) -> None:
    uploads = bucket.replace("/storage/", "/upload/storage/", 1)
    exception: dict[str, object] = {
        "message": f"The function ended: {reason}",
        "name": "FunctionEnded",
        "stack": [],
        "cause": None,
        "context": None,
    }
    message = {
        PIPES_PROTOCOL_VERSION_FIELD: PIPES_PROTOCOL_VERSION,
        "method": "closed",
        "params": {"exception": exception},
        "number": number,
    }
    for chunk in range(last_chunk + 1, last_chunk + _MOST_CHUNKS):
        query = urllib.parse.urlencode(
            {
                "uploadType": "media",
                "name": f"{key_prefix}/{chunk}.json",
                "ifGenerationMatch": 0,
            }
        )
        request = urllib.request.Request(f"{uploads}?{query}", json.dumps(message).encode())
        try:
            with local_opener().open(request, timeout=10):
                return
        except urllib.error.HTTPError as error:
            if error.code != 412:  # a request to cancel took this name
                raise
