"""The local cloud, and what calls the function there."""

from collections.abc import Iterator, Mapping

import dagster as dg
import pytest
from google.cloud import storage

from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance, with an event log of its own."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def bucket(settings: Mapping[str, str]) -> storage.Bucket:
    """The messages bucket."""
    return storage.Client().bucket(settings["MESSAGES_BUCKET"])


@pytest.fixture
def message_reader(bucket: storage.Bucket) -> PipesCloudStorageMessageReader:
    """Reads the messages of the local function."""
    return PipesCloudStorageMessageReader(bucket=bucket.name, client=bucket.client, interval=0.01)


@pytest.fixture
def pipes_function_client(
    message_reader: PipesCloudStorageMessageReader,
) -> PipesCloudFunctionClient:
    """Calls a function, and reads its messages from the local bucket."""
    return PipesCloudFunctionClient(message_reader=message_reader, retry_timeout=1)
