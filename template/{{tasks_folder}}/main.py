"""The cloud function: receives requests from Dagster, runs tasks, and sends messages back."""

import functools
import logging
from pathlib import Path

import flask
import functions_framework
from google.cloud import storage

import tasks
from function_settings import function_timeout
from gcp_pipes.external import (
    PipesCloudStorageMessageWriter,
    cancel_calls,
    configure_logging,
    errors_as_json,
    find_task,
    forward_logs,
    is_cancellation,
    keep_connections,
    open_pipes,
    read_event,
    run_task,
    seconds_left,
    trace_id,
)
from settings import forward_output, heartbeat_interval, messages_bucket

_VERSION = Path(__file__).with_name("version.txt")  # only in the deployed bundle
__version__ = _VERSION.read_text().strip() if _VERSION.exists() else "development"

configure_logging()


@functools.cache
def storage_client() -> storage.Client:
    """The Cloud Storage client of this instance. All requests share its connections."""
    return keep_connections(storage.Client())


@functions_framework.http
@errors_as_json
def main(request: flask.Request) -> flask.typing.ResponseReturnValue:
    """Run the task of a request, or cancel calls.

    Args:
        request: The body has the task's inputs and the parameters of Pipes, or the calls to cancel.
    """
    event = read_event(request)
    if is_cancellation(event):
        cancel_calls(event, storage_client().bucket(messages_bucket()))
        return {"status": "cancelled"}
    message_writer = PipesCloudStorageMessageWriter(
        client=storage_client(),
        bucket=messages_bucket(),
        heartbeat_interval=heartbeat_interval(),
    )
    with (
        open_pipes(event, message_writer=message_writer) as pipes,
        forward_logs(pipes, output=forward_output()),
    ):
        level = logging.DEBUG if pipes.is_partition_step else logging.INFO  # there may be hundreds
        pipes.log.log(level, f"Cloud function version: {__version__}")
        pipes.log.log(level, f"Cloud function trace: {trace_id(request)}")
        run_task(
            lambda: find_task(tasks, pipes, event)(pipes, event),
            seconds=seconds_left(event, function_timeout=function_timeout()),
            message_writer=message_writer,
        )
    return {"status": "succeeded"}
