"""Emulated Cloud Storage, example tasks, and the messages that they send."""

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    encode_param,
)
from google.cloud import storage
from local_cloud.fixtures import context_data

import tasks

EXAMPLE_TASKS = Path(__file__).parent / "example_tasks"


@pytest.fixture(scope="session", autouse=True)
def storage_for_all_tests(emulated_storage: Mapping[str, str]) -> None:
    """Cloud Storage is emulated."""


@pytest.fixture(autouse=True)
def example_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the tasks in `example_tasks/`, so the tests do not depend on the project's tasks."""
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(EXAMPLE_TASKS)])


@pytest.fixture
def client() -> storage.Client:
    """A client of the emulated Cloud Storage."""
    return storage.Client()


@pytest.fixture
def bucket(client: storage.Client, emulated_storage: Mapping[str, str]) -> storage.Bucket:
    """The messages bucket."""
    return client.bucket(emulated_storage["MESSAGES_BUCKET"])


@pytest.fixture
def key_prefix() -> str:
    """The key prefix of the messages of one call."""
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


@pytest.fixture
def make_event(bucket: storage.Bucket, key_prefix: str) -> Callable[..., dict[str, Any]]:
    """Makes an event as Dagster does, with inputs and the parameters of Pipes."""

    def make(*asset_keys: str, key_prefix: str = key_prefix, **inputs: Any) -> dict[str, Any]:
        data = context_data(asset_keys or ["counting"])
        messages = {"bucket": bucket.name, "key_prefix": key_prefix}
        return {
            **inputs,
            DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param({"data": data}),
            DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param(messages),
        }

    return make
