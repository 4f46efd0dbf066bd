"""A function that opens Pipes with the writer of the template, and does nothing."""

import functools

import flask
from gcp_pipes.external import PipesCloudStorageMessageWriter, open_pipes, read_event
from google.cloud import storage


@functools.cache
def storage_client() -> storage.Client:
    """The instance's one Cloud Storage client."""
    return storage.Client()


def main(request: flask.Request) -> str:
    """Open Pipes, and close it."""
    message_writer = PipesCloudStorageMessageWriter(client=storage_client())
    with open_pipes(read_event(request), message_writer=message_writer):
        pass
    return "OK"
