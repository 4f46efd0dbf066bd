"""The cloud function: a request from Dagster in, a task run, messages to Dagster out."""

import functools
import logging
import warnings

import flask
import functions_framework
from google.cloud import storage

from gcp_pipes import (
    PipesCloudStorageMessageWriter,
    answer_errors_as_json,
    cancel_calls,
    cancellable,
    configure_logging,
    deadline,
    forward_logs,
    is_cancellation,
    open_pipes,
    read_event,
    trace_id,
)
from settings import messages_bucket, task_timeout
from tasks import find_task

__version__ = "0.1.0"

configure_logging()
logging.captureWarnings(True)  # to the log, and so to Dagster
warnings.simplefilter("always", append=True)  # in every request, not only in the first one


@functools.cache
def storage_client() -> storage.Client:
    """The instance's one Cloud Storage client: its connections are shared by all requests."""
    return storage.Client()


@functions_framework.http
@answer_errors_as_json
def main(request: flask.Request) -> flask.typing.ResponseReturnValue:
    """Run the task that the request asks for, and tell Dagster all about it.

    Args:
        request: Its body is a task's inputs with the parameters of Pipes, or names calls to end.
    """
    event = read_event(request)
    if is_cancellation(event):
        cancel_calls(event, storage_client().bucket(messages_bucket()))
        return {"status": "cancelled"}
    message_writer = PipesCloudStorageMessageWriter(
        client=storage_client(), bucket=messages_bucket()
    )
    with (
        open_pipes(event, message_writer=message_writer) as pipes,
        forward_logs(pipes),
        deadline(task_timeout()),
        cancellable(message_writer),
    ):
        pipes.log.info(f"Cloud function version: {__version__}")
        pipes.log.info(f"Cloud function trace: {trace_id(request)}")
        task = find_task(pipes, event)
        task(pipes, event)
    return {"status": "succeeded"}
