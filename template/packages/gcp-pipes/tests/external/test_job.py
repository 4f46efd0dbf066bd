"""What a task of a Cloud Run job reads from its environment."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from dagster_pipes import decode_param, encode_param
from google.cloud import storage
from werkzeug.exceptions import BadRequest, Conflict

from gcp_pipes.external import job_event

PARAMS = {"bucket": "messages", "key_prefix": "a/b/1"}


@pytest.fixture
def environment() -> Iterator[pytest.MonkeyPatch]:
    """The environment of a job, with an event."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DAGSTER_PIPES_EVENT", encode_param({"task": "people", "rows": 3}))
        environment.setenv("DAGSTER_PIPES_MESSAGES", encode_param(PARAMS))
        environment.setenv("DAGSTER_PIPES_CONTEXT", encode_param({"data": {}}))
        yield environment


def read(client: storage.Client) -> dict[str, Any]:
    with job_event(client) as event:
        return dict(event)


def test_the_event_is_that_of_a_request(
    client: storage.Client, environment: pytest.MonkeyPatch
) -> None:
    event = read(client)

    assert event["rows"] == 3
    assert decode_param(event["DAGSTER_PIPES_MESSAGES"]) == PARAMS


def test_each_task_reads_its_own_stored_event(
    client: storage.Client, bucket: storage.Bucket, environment: pytest.MonkeyPatch
) -> None:
    blob = bucket.blob("events/several")
    blob.upload_from_string(json.dumps([{"rows": 1}, {"rows": 2}]))
    environment.setenv("DAGSTER_PIPES_STORED_EVENT", f"gs://{bucket.name}/{blob.name}")
    environment.setenv("CLOUD_RUN_TASK_INDEX", "1")

    assert read(client) == {"rows": 2}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, "The environment lacks 'DAGSTER_PIPES_EVENT'. This job is executed by a Dagster"),
        ("nonsense", "The event cannot be decoded"),
        ("AAAA", "The event cannot be decoded"),
    ],
)
def test_an_event_that_is_not_dagsters_is_rejected(
    value: str | None, error: str, client: storage.Client, environment: pytest.MonkeyPatch
) -> None:
    if value is None:
        environment.delenv("DAGSTER_PIPES_EVENT")
    else:
        environment.setenv("DAGSTER_PIPES_EVENT", value)

    with pytest.raises(BadRequest, match=error):
        read(client)


@pytest.mark.parametrize(
    ("first", "key_prefix"), [(None, "/1"), ({"method": "opened"}, "/1-retry-2")]
)
def test_a_task_that_is_started_again_has_a_key_prefix_of_its_own_if_it_has_opened_pipes(
    first: dict[str, str] | None,
    key_prefix: str,
    client: storage.Client,
    bucket: storage.Bucket,
    environment: pytest.MonkeyPatch,
) -> None:
    start_again(bucket, environment, first, "again")

    assert decode_param(read(client)["DAGSTER_PIPES_MESSAGES"])["key_prefix"] == (
        f"again-{first is None}{key_prefix}"
    )


def test_a_task_that_is_started_again_replaces_an_attempt_once(
    client: storage.Client, bucket: storage.Bucket, environment: pytest.MonkeyPatch
) -> None:
    start_again(bucket, environment, None, "replacing")
    event = {"DAGSTER_PIPES_REPLACES": ["replaced/1", "replaced/2"]}
    environment.setenv("DAGSTER_PIPES_EVENT", encode_param(event))
    replaced = {"method": "log", "replaced_by": "replacing-True/1"}
    bucket.blob("replaced/1/1.json").upload_from_string(json.dumps(replaced))

    assert read(client)["DAGSTER_PIPES_REPLACES"] == ["replaced/2"]


def test_a_task_that_was_replaced_does_nothing_when_it_is_started_again(
    client: storage.Client, bucket: storage.Bucket, environment: pytest.MonkeyPatch
) -> None:
    start_again(bucket, environment, {"method": "log"}, "replaced")

    with pytest.raises(Conflict, match="A retry has replaced this task"):
        read(client)


def start_again(
    bucket: storage.Bucket, environment: pytest.MonkeyPatch, first: object, name: str
) -> None:
    """Let the task be started a third time, after it has stored a first message, or none."""
    params = {"bucket": bucket.name, "key_prefix": f"{name}-{first is None}/1"}
    environment.setenv("DAGSTER_PIPES_MESSAGES", encode_param(params))
    environment.setenv("CLOUD_RUN_TASK_ATTEMPT", "2")
    if first is not None:
        bucket.blob(f"{params['key_prefix']}/1.json").upload_from_string(json.dumps(first))
