"""Heartbeats of a call, which show Dagster that it is alive."""

import threading
import time
from collections.abc import Callable

from google.cloud import storage

from gcp_pipes.external import PipesCloudStorageMessageWriter

INTERVAL = 0.2  # seconds


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def heartbeats(bucket: storage.Bucket, key_prefix: str) -> list[str]:
    prefix = f"{key_prefix}/heartbeats/"
    return [blob.name.removeprefix(prefix) for blob in bucket.list_blobs(prefix=prefix)]


def test_a_call_without_messages_stores_heartbeats_until_it_ends(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str
) -> None:
    writer = PipesCloudStorageMessageWriter(client, heartbeat_interval=INTERVAL)

    with writer.open({"bucket": bucket.name, "key_prefix": key_prefix}):
        eventually(lambda: len(heartbeats(bucket, key_prefix)) >= 3)
        assert writer.get_opened_extras()["heartbeat_interval"] == INTERVAL

    time.sleep(1.0)  # one may be under way
    stored = heartbeats(bucket, key_prefix)
    assert sorted(stored, key=int) == [str(number) for number in range(1, len(stored) + 1)]
    time.sleep(3 * INTERVAL)
    assert heartbeats(bucket, key_prefix) == stored


def test_calls_at_once_have_heartbeats_of_their_own(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str
) -> None:
    writers = [
        PipesCloudStorageMessageWriter(client, heartbeat_interval=INTERVAL) for _ in range(2)
    ]

    with (
        writers[0].open({"bucket": bucket.name, "key_prefix": f"{key_prefix}-0"}),
        writers[1].open({"bucket": bucket.name, "key_prefix": f"{key_prefix}-1"}),
    ):
        eventually(lambda: heartbeats(bucket, f"{key_prefix}-0"))
        eventually(lambda: heartbeats(bucket, f"{key_prefix}-1"))


def test_a_call_whose_next_heartbeat_exists_is_cancelled_once_it_is_due(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str
) -> None:
    for number in (1, 2):  # if an upload of the call times out, it takes the first for its own
        bucket.blob(f"{key_prefix}/heartbeats/{number}").upload_from_string("")
    writer = PipesCloudStorageMessageWriter(client, heartbeat_interval=INTERVAL)
    cancelled = threading.Event()
    writer.when_cancelled(cancelled.set)

    with writer.open({"bucket": bucket.name, "key_prefix": key_prefix}):
        assert cancelled.wait(10)
        eventually(lambda: len(heartbeats(bucket, key_prefix)) >= 4)  # it is still alive
