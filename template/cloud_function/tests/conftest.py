"""The function on this machine: served by the Functions Framework, with emulated Cloud Storage."""

import importlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import functions_framework
import pytest
from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    PipesContext,
    PipesContextData,
    PipesDefaultContextLoader,
    PipesDefaultMessageWriter,
    PipesMappingParamsLoader,
    encode_param,
)
from flask.testing import FlaskClient
from google.cloud import storage
from local_cloud.cloud import storage_emulator

import tasks

MAIN = Path(__file__).parent.parent / "main.py"
EXAMPLE_TASKS = Path(__file__).parent / "example_tasks"


@pytest.fixture(scope="session", autouse=True)
def emulated_storage() -> Iterator[None]:
    """Cloud Storage with the messages bucket, where the environment says that Cloud Storage is."""
    with storage_emulator() as settings, pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def example_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks in `example_tasks/`, beside those of the project: so these can come and go."""
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(EXAMPLE_TASKS)])


@pytest.fixture
def client() -> storage.Client:
    """A client of the emulated Cloud Storage."""
    return storage.Client()


@pytest.fixture
def web() -> FlaskClient:
    """Sends requests to the function, as the Functions Framework serves it."""
    web: FlaskClient = functions_framework.create_app("main", str(MAIN)).test_client()
    return web


@pytest.fixture
def bucket(client: storage.Client) -> storage.Bucket:
    """The messages bucket."""
    return next(client.list_buckets())


@pytest.fixture
def key_prefix() -> str:
    """Where the messages of one call go."""
    return uuid.uuid4().hex


@pytest.fixture
def read_messages(bucket: storage.Bucket, key_prefix: str) -> Callable[[], list[dict[str, Any]]]:
    """Reads the messages of the call, in order, as the orchestrator does."""

    def read() -> list[dict[str, Any]]:
        messages = []
        index = 1
        while (blob := bucket.blob(f"{key_prefix}/{index}.json")).exists():
            messages += [json.loads(line) for line in blob.download_as_text().split("\n")]
            index += 1
        return messages

    return read


def context_data(asset_keys: Sequence[str], partition_key: str | None = None) -> PipesContextData:
    """What Dagster tells a function that is to materialize assets, or a partition of them."""
    return {
        "asset_keys": asset_keys,
        "code_version_by_asset_key": dict.fromkeys(asset_keys),
        "provenance_by_asset_key": dict.fromkeys(asset_keys),
        "partition_key": partition_key,
        "partition_key_range": None,
        "partition_time_window": None,
        "run_id": "11111111-2222-3333-4444-555555555555",
        "job_name": None,
        "retry_number": 0,
        "extras": {},
    }


@pytest.fixture
def make_event(bucket: storage.Bucket, key_prefix: str) -> Callable[..., dict[str, Any]]:
    """Makes the event that Dagster sends: inputs, and the parameters of Pipes."""

    def make(*asset_keys: str, **inputs: Any) -> dict[str, Any]:
        data = context_data(asset_keys or ["counting"])
        messages = {"bucket": bucket.name, "key_prefix": key_prefix}
        return {
            **inputs,
            DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param({"data": data}),
            DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param(messages),
        }

    return make


@pytest.fixture
def run_task(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the task of an asset, with a Pipes context that writes its messages to a file.

    What the task reported is returned, by the method of the message.
    """

    def run(
        asset_key: str, event: dict[str, Any], partition_key: str | None = None
    ) -> dict[str, Any]:
        messages = tmp_path / "messages"
        params = {
            DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param(
                {"data": context_data([asset_key], partition_key)}
            ),
            DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param({"path": str(messages)}),
        }
        with PipesContext(
            PipesMappingParamsLoader(params),
            PipesDefaultContextLoader(),
            PipesDefaultMessageWriter(),
        ) as pipes:
            importlib.import_module(f"tasks.{asset_key}").run(pipes, event)
        said = map(json.loads, messages.read_text().splitlines())
        return {message["method"]: message["params"] for message in said}

    return run
