"""Finds the objects that have arrived in a bucket, for a sensor."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.cloud import storage

# An object may appear in the list after one with a later time.
_OVERLAP = timedelta(minutes=5)


@dataclass(frozen=True)
class ArrivedObject:
    """An object that has arrived in a bucket, or was replaced there.

    Attributes:
        name: Its name, such as `incoming/a.csv`.
        uri: Its address, such as `gs://bucket/incoming/a.csv`.
        run_key: The key of the run for it: Dagster starts one run for each key, also if a sensor
            requests it again after a crash. An object that replaces another one has another key.
    """

    name: str
    uri: str
    run_key: str


@dataclass(frozen=True)
class Arrivals:
    """The objects that have arrived since the sensor's last evaluation.

    Attributes:
        objects: The objects, the oldest first.
        cursor: The cursor for the next evaluation.
    """

    objects: Sequence[ArrivedObject]
    cursor: str


def find_arrivals(
    client: storage.Client, *, bucket: str, prefix: str, cursor: str | None, limit: int = 100
) -> Arrivals:
    """Find the objects that have arrived in a bucket. It lists all objects under the prefix.

    The account needs `roles/storage.objectViewer` on the bucket.

    Args:
        client: The Cloud Storage client.
        bucket: The name of the bucket, without gs:// and slashes.
        prefix: The start of the objects' names, such as `incoming/`.
        cursor: The sensor's cursor: that of the last `Arrivals`, or None at first.
        limit: The most objects to return; the others follow in the next evaluation.

    Raises:
        google.api_core.exceptions.GoogleAPICallError: The bucket could not be listed.
    """
    seen: dict[str, str] = json.loads(cursor) if cursor else {}
    since = _window_start(seen)
    found = {
        f"{blob.name}#{blob.generation}": blob
        for blob in client.list_blobs(bucket, prefix=prefix)
        if blob.time_created >= since and not blob.name.endswith("/")  # which stands for a folder
    }
    new = sorted(found.keys() - seen.keys(), key=lambda key: (found[key].time_created, key))[:limit]
    seen |= {key: found[key].time_created.isoformat() for key in new}
    since = _window_start(seen)
    return Arrivals(
        objects=[
            ArrivedObject(found[key].name, f"gs://{bucket}/{found[key].name}", key) for key in new
        ],
        cursor=json.dumps(
            {key: time for key, time in seen.items() if datetime.fromisoformat(time) >= since}
        ),
    )


def _window_start(seen: Mapping[str, str]) -> datetime:
    """The time before which objects are not looked at, since all of them were seen."""
    times = [datetime.fromisoformat(time) for time in seen.values()]
    return max(times) - _OVERLAP if times else datetime.min.replace(tzinfo=UTC)
