"""What the assets need: the settings, and the reader of what their tasks send."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import dagster as dg
from google.cloud import storage

from gcp_pipes.orchestrator import PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.auth import find_credentials

from ..settings import Settings


@dg.resource
def settings() -> Settings:
    """The settings, read when a run starts: loading the definitions needs none."""
    return Settings.from_environment()


@contextmanager
def message_reader(settings: Settings) -> Iterator[PipesCloudStorageMessageReader]:
    """Reads messages from the bucket in the settings, until the end of the block.

    Args:
        settings: The settings.
    """
    account = settings.impersonate_service_account
    credentials = find_credentials(impersonate=account) if account else None
    with closing(storage.Client(credentials=credentials)) as gcs:
        yield PipesCloudStorageMessageReader(bucket=settings.messages_bucket, client=gcs)


@dg.definitions
def resources() -> dg.Definitions:
    """The settings, under the name by which assets ask for them, and how steps run."""
    # `just dev` runs the steps of a run in the run's own process, which starts faster.
    in_process = os.environ.get("DAGSTER_EXECUTOR") == "in_process"
    return dg.Definitions(
        resources={"settings": settings},
        executor=dg.in_process_executor if in_process else None,
    )
