"""Objects that arrive in a bucket of the emulated storage."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.cloud import storage

from gcp_pipes.orchestrator.arrivals import Arrivals, find_arrivals


@pytest.fixture
def bucket(settings: Mapping[str, str], request: pytest.FixtureRequest) -> Iterator[storage.Bucket]:
    """A bucket of this test."""
    with closing(storage.Client()) as client:
        yield client.create_bucket(f"arrivals-{abs(hash(request.node.name))}")


@pytest.fixture
def find(bucket: storage.Bucket) -> Callable[..., Arrivals]:
    """Finds what has arrived under `incoming/`."""

    def find(cursor: str | None = None, **options: Any) -> Arrivals:
        return find_arrivals(
            bucket.client, bucket=bucket.name, prefix="incoming/", cursor=cursor, **options
        )

    return find


def upload(bucket: storage.Bucket, *names: str) -> None:
    for name in names:
        bucket.blob(name).upload_from_string("a,b")


def names(arrivals: Arrivals) -> list[str]:
    return [each.name for each in arrivals.objects]


def test_objects_are_found_once_and_the_oldest_first(
    bucket: storage.Bucket, find: Callable[..., Arrivals]
) -> None:
    upload(bucket, "incoming/b.csv", "incoming/a.csv", "others/c.csv", "incoming/folder/")

    first = find()
    upload(bucket, "incoming/d/e.csv")
    second = find(first.cursor)

    assert names(first) == ["incoming/b.csv", "incoming/a.csv"]
    assert first.objects[0].uri == f"gs://{bucket.name}/incoming/b.csv"
    assert names(second) == ["incoming/d/e.csv"]
    assert names(find(second.cursor)) == []


def test_an_object_that_is_replaced_arrives_again_with_another_run_key(
    bucket: storage.Bucket, find: Callable[..., Arrivals]
) -> None:
    upload(bucket, "incoming/a.csv")
    first = find()

    upload(bucket, "incoming/a.csv")
    second = find(first.cursor)

    assert names(second) == ["incoming/a.csv"]
    assert first.objects[0].run_key != second.objects[0].run_key
    assert find().objects[0].run_key == second.objects[0].run_key


def test_further_objects_follow_in_the_next_evaluation(
    bucket: storage.Bucket, find: Callable[..., Arrivals]
) -> None:
    expected = [f"incoming/{number}" for number in random.sample(range(1_000), 25)]
    upload(bucket, *expected)
    cursor, found = None, []

    for _ in range(3):
        arrivals = find(cursor, limit=10)
        found.append(names(arrivals))
        cursor = arrivals.cursor

    assert found == [expected[:10], expected[10:20], expected[20:]]


def test_an_object_that_becomes_visible_late_is_found(
    bucket: storage.Bucket, find: Callable[..., Arrivals]
) -> None:
    upload(bucket, "incoming/late.csv", "incoming/early.csv")
    arrivals = find()
    seen: dict[str, str] = json.loads(arrivals.cursor)
    late = next(key for key in seen if key.startswith("incoming/late.csv#"))

    del seen[late]

    assert names(find(json.dumps(seen))) == ["incoming/late.csv"]


def test_the_cursor_forgets_old_objects_but_does_not_find_them_again(
    bucket: storage.Bucket, find: Callable[..., Arrivals]
) -> None:
    upload(bucket, "incoming/old.csv")
    newer = {"incoming/new.csv#1": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    cursor = json.dumps({**json.loads(find().cursor), **newer})

    arrivals = find(cursor)

    assert names(arrivals) == []
    assert json.loads(arrivals.cursor) == newer


def test_a_deleted_object_does_not_bring_back_the_others(
    bucket: storage.Bucket, find: Callable[..., Arrivals]
) -> None:
    upload(bucket, "incoming/a.csv", "incoming/b.csv")
    cursor = find().cursor

    bucket.delete_blob("incoming/b.csv")

    assert names(find(cursor)) == []
