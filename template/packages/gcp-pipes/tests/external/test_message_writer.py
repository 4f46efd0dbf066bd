"""Messages that are written to the bucket."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from dagster_pipes import DagsterPipesError, PipesMessage
from google.cloud import storage

from gcp_pipes.external import PipesCloudStorageMessageWriter

ReadMessages = Callable[[], list[dict[str, Any]]]


def message(text: str) -> PipesMessage:
    return {
        "__dagster_pipes_version": "0.1",
        "method": "log",
        "params": {"message": text, "level": "INFO"},
    }


def first_messages(read_messages: ReadMessages) -> list[dict[str, Any]]:
    """Wait until messages are stored."""
    deadline = time.monotonic() + 10
    while not (messages := read_messages()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return messages


def test_messages_arrive_in_order(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str, read_messages: ReadMessages
) -> None:
    sent = [message(f"{number}: line\nbreak, ž, \u2028") for number in range(1_000)]
    writer = PipesCloudStorageMessageWriter(client, interval=0.01)

    with writer.open({"bucket": bucket.name, "key_prefix": key_prefix}) as channel:
        for each in sent:
            channel.write_message(each)

    numbered = [{**each, "number": number} for number, each in enumerate(sent, start=1)]
    assert read_messages() == numbered


def test_a_message_is_stored_while_the_task_still_runs(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str, read_messages: ReadMessages
) -> None:
    writer = PipesCloudStorageMessageWriter(client, interval=0.01)

    with writer.open({"bucket": bucket.name, "key_prefix": key_prefix}) as channel:
        channel.write_message(message("early"))
        assert first_messages(read_messages) == [{**message("early"), "number": 1}]


def test_the_message_opened_is_stored_before_the_task_starts(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str, read_messages: ReadMessages
) -> None:
    writer = PipesCloudStorageMessageWriter(client, interval=3600)

    with writer.open({"bucket": bucket.name, "key_prefix": key_prefix}) as channel:
        channel.write_message({**message("x"), "method": "opened"})
        assert [message["method"] for message in read_messages()] == ["opened"]


def test_a_full_chunk_does_not_wait_for_the_interval(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str, read_messages: ReadMessages
) -> None:
    writer = PipesCloudStorageMessageWriter(client, interval=3600)

    with writer.open({"bucket": bucket.name, "key_prefix": key_prefix}) as channel:
        channel.write_message(message("x" * 2_000_000))
        assert len(first_messages(read_messages)) == 1


def test_without_a_key_prefix_chunks_are_at_the_root(
    client: storage.Client, bucket: storage.Bucket
) -> None:
    with PipesCloudStorageMessageWriter(client).open({"bucket": bucket.name}) as channel:
        channel.write_message(message("hello"))

    bucket.blob("1.json").delete()


def test_an_existing_chunk_is_not_overwritten_and_the_loss_is_an_error(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str
) -> None:
    bucket.blob(f"{key_prefix}/1.json").upload_from_string("of another request")
    writer = PipesCloudStorageMessageWriter(client)

    with (
        pytest.raises(DagsterPipesError, match=r"1\.json exists already\. A retry has replaced"),
        writer.open({"bucket": bucket.name, "key_prefix": key_prefix}) as channel,
    ):
        channel.write_message(message("mine"))

    assert bucket.blob(f"{key_prefix}/1.json").download_as_text() == "of another request"


def test_a_missing_bucket_is_an_error_that_names_it(client: storage.Client) -> None:
    writer = PipesCloudStorageMessageWriter(client)

    with (
        pytest.raises(DagsterPipesError, match="gs://no-such-bucket/p: 404"),
        writer.open({"bucket": "no-such-bucket", "key_prefix": "p"}) as channel,
    ):
        channel.write_message(message("lost"))


def test_a_value_that_is_not_json_serializable_is_an_error_in_the_task(
    client: storage.Client, bucket: storage.Bucket, key_prefix: str
) -> None:
    writer = PipesCloudStorageMessageWriter(client)

    with (
        writer.open({"bucket": bucket.name, "key_prefix": key_prefix}) as channel,
        pytest.raises(TypeError, match="not JSON serializable"),
    ):
        channel.write_message({**message("x"), "params": {"value": object()}})


@pytest.mark.parametrize("params", [{}, {"bucket": 1}, {"bucket": "b", "key_prefix": 1}])
def test_parameters_of_another_kind_of_reader_are_rejected(
    params: dict[str, Any], client: storage.Client
) -> None:
    with (
        pytest.raises(DagsterPipesError, match="Use PipesCloudStorageMessageReader"),
        PipesCloudStorageMessageWriter(client).open(params),
    ):
        pass
