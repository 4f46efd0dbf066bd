"""What the assets need: the settings, and the client that calls the cloud function."""

import dagster as dg
from google.cloud import storage

from ..pipes import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from ..settings import Settings


@dg.resource
def settings() -> Settings:
    """The settings, read when a run starts: loading the definitions needs none."""
    return Settings.from_environment()


@dg.resource(required_resource_keys={"settings"})
def pipes_function_client(context: dg.InitResourceContext) -> PipesCloudFunctionClient:
    """Calls the cloud function, and reads its messages from the bucket in the settings."""
    return PipesCloudFunctionClient(
        message_reader=PipesCloudStorageMessageReader(
            bucket=context.resources.settings.messages_bucket,
            client=storage.Client(),
        )
    )


@dg.definitions
def resources() -> dg.Definitions:
    """The resources, under the names by which assets ask for them."""
    return dg.Definitions(
        resources={"settings": settings, "pipes_function_client": pipes_function_client}
    )
