"""A function that opens Pipes with the writer of `dagster_pipes`, and does nothing."""

import functools

import flask
from dagster_pipes import (
    PipesContext,
    PipesGCSMessageWriter,
    PipesMappingParamsLoader,
    open_dagster_pipes,
)
from google.cloud import storage


@functools.cache
def storage_client() -> storage.Client:
    """The instance's one Cloud Storage client."""
    return storage.Client()


def main(request: flask.Request) -> str:
    """Open Pipes, and close it."""
    with open_dagster_pipes(
        params_loader=PipesMappingParamsLoader(request.get_json()),
        message_writer=PipesGCSMessageWriter(client=storage_client()),
    ):
        pass
    PipesContext._instance = None  # or else the next request would find this one's context
    return "OK"
