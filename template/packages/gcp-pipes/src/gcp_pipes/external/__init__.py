"""The side of Dagster Pipes where the work runs. It does not require Dagster.

A cloud function receives requests over HTTP, and a Cloud Run job its event in environment
variables. Both write messages to Cloud Storage.
"""

from gcp_pipes.external.cancellation import (
    TaskCancelledError,
    TaskInterruptedError,
    TaskTimeoutError,
    cancel_calls,
    is_cancellation,
    run_task,
)
from gcp_pipes.external.context import PipesCloudFunctionContext
from gcp_pipes.external.deadline import seconds_left
from gcp_pipes.external.job import job_event
from gcp_pipes.external.logs import configure_logging, forward_logs
from gcp_pipes.external.message_writer import (
    MessagesNotStoredError,
    PipesCloudStorageMessageWriter,
    PipesCloudStorageMessageWriterChannel,
)
from gcp_pipes.external.observation import report_asset_observation
from gcp_pipes.external.request import (
    Event,
    errors_as_json,
    event_input,
    open_pipes,
    read_event,
    trace_id,
)
from gcp_pipes.external.storage import keep_connections
from gcp_pipes.external.tasks import find_task

__all__ = [
    "Event",
    "MessagesNotStoredError",
    "PipesCloudFunctionContext",
    "PipesCloudStorageMessageWriter",
    "PipesCloudStorageMessageWriterChannel",
    "TaskCancelledError",
    "TaskInterruptedError",
    "TaskTimeoutError",
    "cancel_calls",
    "configure_logging",
    "errors_as_json",
    "event_input",
    "find_task",
    "forward_logs",
    "is_cancellation",
    "job_event",
    "keep_connections",
    "open_pipes",
    "read_event",
    "report_asset_observation",
    "run_task",
    "seconds_left",
    "trace_id",
]
