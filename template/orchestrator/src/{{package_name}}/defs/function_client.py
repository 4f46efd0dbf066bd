"""The client that calls the cloud function."""

from collections.abc import Iterator
from contextlib import closing

import dagster as dg

from gcp_pipes.orchestrator import PipesCloudFunctionClient

from ..settings import Settings
from .resources import message_reader


@dg.resource(required_resource_keys={"settings"})
def pipes_function_client(context: dg.InitResourceContext) -> Iterator[PipesCloudFunctionClient]:
    """Calls the cloud function, and reads its messages from the bucket in the settings."""
    settings: Settings = context.resources.settings
    with message_reader(settings) as reader:
        client = PipesCloudFunctionClient(
            message_reader=reader,
            timeout=settings.function_timeout,
            project=reader.client.project,
            audience=settings.function_audience,
            impersonate=settings.impersonate_service_account,
        )
        with closing(client):
            yield client


@dg.definitions
def function_client() -> dg.Definitions:
    """The client, under the name by which assets ask for it."""
    return dg.Definitions(resources={"pipes_function_client": pipes_function_client})
