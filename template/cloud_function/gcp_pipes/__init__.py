"""The function's side of Dagster Pipes: requests in, messages out through Cloud Storage.

`copier update` brings fixes to this package, and joins them with yours. Tasks live in `tasks/`.
"""

from gcp_pipes.cancellation import cancel_calls, is_cancellation
from gcp_pipes.context import PipesCloudFunctionContext
from gcp_pipes.deadline import seconds_left
from gcp_pipes.interruption import TaskCancelledError, TaskTimeoutError, run_task
from gcp_pipes.logs import configure_logging, forward_logs
from gcp_pipes.message_writer import (
    MessagesNotStoredError,
    PipesCloudStorageMessageWriter,
    PipesCloudStorageMessageWriterChannel,
)
from gcp_pipes.observation import report_asset_observation
from gcp_pipes.request import (
    Event,
    answer_errors_as_json,
    event_input,
    open_pipes,
    read_event,
    trace_id,
)
from gcp_pipes.storage import keep_connections

__all__ = [
    "Event",
    "MessagesNotStoredError",
    "PipesCloudFunctionContext",
    "PipesCloudStorageMessageWriter",
    "PipesCloudStorageMessageWriterChannel",
    "TaskCancelledError",
    "TaskTimeoutError",
    "answer_errors_as_json",
    "cancel_calls",
    "configure_logging",
    "event_input",
    "forward_logs",
    "is_cancellation",
    "keep_connections",
    "open_pipes",
    "read_event",
    "report_asset_observation",
    "run_task",
    "seconds_left",
    "trace_id",
]
