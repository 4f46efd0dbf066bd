"""Much at once: many messages, large messages, many requests."""

import json
import threading
import tracemalloc
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg
import requests
from conftest import FUNCTIONS, Materialize, lines, run_asset, serve
from dagster_gcp.pipes import PipesGCSMessageReader
from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    PipesMessage,
    encode_param,
)
from faults import FaultProxy
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader


def test_a_message_of_ten_mebibytes_arrives(materialize: Materialize) -> None:
    size = 10 * 1024 * 1024

    run = materialize(lines=1, size=size)

    assert run.success
    assert run.lines == [lines(1)[0] + "x" * size]


class Keeping(dg.PipesMessageHandler):
    """Keeps the messages."""

    def __init__(self, reader: dg.PipesMessageReader) -> None:
        super().__init__(dg.build_op_context(), reader)
        self.messages: list[PipesMessage] = []

    def handle_message(self, message: PipesMessage) -> None:
        self.messages.append(message)


class Discarding(dg.PipesMessageHandler):
    """Counts the messages, and keeps none."""

    def __init__(self, reader: dg.PipesMessageReader) -> None:
        super().__init__(dg.build_op_context(), reader)
        self.count = 0

    def handle_message(self, message: PipesMessage) -> None:
        self.count += 1


def test_the_reader_holds_one_chunk_at_a_time(reader: PipesCloudStorageMessageReader) -> None:
    message = {"method": "log", "params": {"message": "x" * 1000, "level": "INFO"}}
    count = 100
    chunk = "\n".join([json.dumps(message)] * 1000)
    received = Discarding(reader)

    with reader.read_messages(received) as params:
        bucket = reader.client.bucket(params["bucket"])
        for index in range(count, 0, -1):  # backwards: none is read before the last is there
            bucket.blob(f"{params['key_prefix']}/{index}.json").upload_from_string(chunk)
        tracemalloc.start()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert received.count == 1000 * count
    assert peak < 6 * len(chunk)


def test_32_requests_at_once_each_get_their_own_messages(
    reader: PipesCloudStorageMessageReader, calls: FaultProxy
) -> None:
    """Without Dagster runs, of which a process can start but one at a time."""
    together = threading.Barrier(32)
    handlers = [Keeping(reader) for _ in range(32)]

    def call(number: int) -> int:
        together.wait(60)
        with reader.read_messages(handlers[number]) as params:
            event = {
                "task": "scripted",
                "lines": 1000,
                "pause": 0.001,
                "library_logs": [f"library {number}"],
                DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param({"data": context_data(number)}),
                DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param(params),
            }
            return requests.post(calls.url, json=event, timeout=120).status_code

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(call, range(32))) == [200] * 32

    for number, handler in enumerate(handlers):
        logged = [each["params"] for each in handler.messages if each["method"] == "log"]
        said = [each["message"] for each in logged if each is not None]
        assert [each for each in said if " line " in each] == lines(1000, f"asset_{number}")
        assert [each for each in said if "library" in each] == [f"library {number}"]
        assert handler.messages[-1]["method"] == "closed"


def context_data(number: int) -> dict[str, object]:
    """What Dagster tells a function that is to materialize one of many assets."""
    key = f"asset_{number}"
    return {
        "asset_keys": [key],
        "code_version_by_asset_key": {key: None},
        "provenance_by_asset_key": {key: None},
        "partition_key": None,
        "partition_key_range": None,
        "partition_time_window": None,
        "run_id": str(uuid.uuid4()),
        "job_name": None,
        "retry_number": 0,
        "extras": {},
    }


def test_a_function_with_the_stock_writer_talks_to_our_reader(
    materialize: Materialize, emulator: Mapping[str, str]
) -> None:
    with serve(FUNCTIONS / "stock.py", emulator["STORAGE_EMULATOR_HOST"]) as url:
        run = materialize(url=url, lines=5)

    assert run.success
    assert run.lines == lines(5)
    assert run.metadata["writer"] == "stock"


def test_a_function_with_our_writer_talks_to_the_stock_reader(
    client: PipesCloudFunctionClient, calls: FaultProxy, reader: PipesCloudStorageMessageReader
) -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> Any:
        stock = PipesCloudFunctionClient(
            PipesGCSMessageReader(bucket=reader.bucket, client=reader.client)
        )
        return stock.run(
            context=context, function_url=calls.url, event={"task": "scripted", "lines": 5}
        ).get_materialize_result()

    run = run_asset(thing)

    assert run.success, run.failure
    assert run.lines == lines(5)
