"""The cloud function: a request from Dagster in, a task run, messages to Dagster out."""

import functools

import flask
import functions_framework
from google.cloud import storage

from gcp_pipes import (
    PipesCloudStorageMessageWriter,
    answer_errors_as_json,
    cancel_calls,
    configure_logging,
    forward_logs,
    is_cancellation,
    keep_connections,
    open_pipes,
    read_event,
    run_task,
    seconds_left,
    trace_id,
)
from settings import forward_output, function_timeout, messages_bucket
from tasks import find_task

__version__ = "0.1.0"

configure_logging()


@functools.cache
def storage_client() -> storage.Client:
    """The instance's one Cloud Storage client: its connections are shared by all requests."""
    return keep_connections(storage.Client())


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
        forward_logs(pipes, output=forward_output()),
    ):
        pipes.log.info(f"Cloud function version: {__version__}")
        pipes.log.info(f"Cloud function trace: {trace_id(request)}")
        run_task(
            lambda: find_task(pipes, event)(pipes, event),
            seconds=seconds_left(event, function_timeout=function_timeout()),
            message_writer=message_writer,
        )
    return {"status": "succeeded"}
