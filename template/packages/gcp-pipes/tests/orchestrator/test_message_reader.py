"""Messages on their way from the bucket into a Dagster run."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import pytest
from dagster_pipes import DagsterPipesError, PipesMessage
from google.cloud import storage


class Received(dg.PipesMessageHandler):
    """Keeps the messages, where Dagster's own handler writes them to the run."""

    def __init__(self, reader: dg.PipesMessageReader) -> None:
        super().__init__(dg.build_op_context(), reader)
        self.texts: list[str] = []
        self.problems: list[str] = []

    def handle_message(self, message: PipesMessage) -> None:
        assert message["params"] is not None
        self.texts.append(message["params"]["message"])

    def report_pipes_framework_exception(self, origin: str, exc_info: Any) -> None:
        self.problems.append(str(exc_info[1]))


def chunk(*texts: str) -> str:
    return "\n".join(
        json.dumps({"method": "log", "params": {"message": text, "level": "INFO"}})
        for text in texts
    )


@pytest.fixture
def store(bucket: storage.Bucket) -> Callable[[Mapping[str, Any], int, str], None]:
    """Stores a chunk, as the function does."""

    def store(params: Mapping[str, Any], index: int, text: str) -> None:
        bucket.blob(f"{params['key_prefix']}/{index}.json").upload_from_string(text)

    return store


def test_messages_are_read_while_the_function_runs(
    message_reader: dg.PipesMessageReader, store: Callable[..., None]
) -> None:
    received = Received(message_reader)

    with message_reader.read_messages(received) as params:
        for index in (1, 2):
            store(params, index, chunk(f"chunk {index}"))
            deadline = time.monotonic() + 10
            while len(received.texts) < index and time.monotonic() < deadline:
                time.sleep(0.01)
            assert received.texts[-1] == f"chunk {index}"


def test_messages_that_wait_when_the_call_returns_are_read_in_order(
    message_reader: dg.PipesMessageReader, store: Callable[..., None]
) -> None:
    received = Received(message_reader)

    with message_reader.read_messages(received) as params:
        for index in range(1, 31):
            store(params, index, chunk(f"{index} a", f"{index} b"))

    assert received.texts == [f"{index} {part}" for index in range(1, 31) for part in "ab"]


def test_one_reader_serves_several_calls_at_once(
    message_reader: dg.PipesMessageReader, store: Callable[..., None]
) -> None:
    one, other = Received(message_reader), Received(message_reader)

    with (
        message_reader.read_messages(one) as one_params,
        message_reader.read_messages(other) as other_params,
    ):
        store(one_params, 1, chunk("for one"))
        store(other_params, 1, chunk("for the other"))

    assert (one.texts, other.texts) == (["for one"], ["for the other"])


@pytest.mark.parametrize("text", ["no JSON", '{"method": "log"', '"text"'])
def test_a_message_that_cannot_be_parsed_is_an_error_that_names_its_chunk(
    text: str, message_reader: dg.PipesMessageReader, store: Callable[..., None]
) -> None:
    received = Received(message_reader)

    def read() -> None:
        with message_reader.read_messages(received) as params:
            store(params, 1, chunk("good"))
            store(params, 2, text)
            store(params, 3, chunk("good, too"))

    with pytest.raises(DagsterPipesError, match=r"Could not parse a message in gs://.*/2\.json"):
        read()
    assert received.texts == ["good", "good, too"]
    assert len(received.problems) == 1


def test_a_missing_chunk_is_an_error_and_the_others_are_read(
    message_reader: dg.PipesMessageReader, store: Callable[..., None]
) -> None:
    received = Received(message_reader)

    def read() -> None:
        with message_reader.read_messages(received) as params:
            for index in (1, 2, 4, 5):
                store(params, index, chunk(f"chunk {index}"))

    with pytest.raises(DagsterPipesError, match=r"gs://.*/3\.json is missing"):
        read()
    assert received.texts == ["chunk 1", "chunk 2", "chunk 4", "chunk 5"]
