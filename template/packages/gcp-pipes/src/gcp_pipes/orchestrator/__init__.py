"""The side of Dagster Pipes where Dagster runs: calls a cloud function, and reads its messages."""

from gcp_pipes.orchestrator.cloud_function import PipesCloudFunctionError
from gcp_pipes.orchestrator.cloud_function_client import (
    PipesCloudFunctionClient,
    PipesCloudFunctionEventContextInjector,
)
from gcp_pipes.orchestrator.code_references import code_references
from gcp_pipes.orchestrator.external_client import (
    CallOptions,
    ClientOptions,
    PipesExternalClient,
)
from gcp_pipes.orchestrator.launcher import Ending, Launch, Launcher, Outcome, PipesCallError
from gcp_pipes.orchestrator.message_reader import PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.plain_call import CloudFunctionAnswer

__all__ = [
    "CallOptions",
    "ClientOptions",
    "CloudFunctionAnswer",
    "Ending",
    "Launch",
    "Launcher",
    "Outcome",
    "PipesCallError",
    "PipesCloudFunctionClient",
    "PipesCloudFunctionError",
    "PipesCloudFunctionEventContextInjector",
    "PipesCloudStorageMessageReader",
    "PipesExternalClient",
    "code_references",
]
