"""The function's side of Dagster Pipes: requests in, messages out through Cloud Storage.

`copier update` brings fixes to this package, and joins them with yours. Tasks live in `tasks/`.
"""

from gcp_pipes.cancellation import cancel_calls, is_cancellation
from gcp_pipes.interruption import TaskCancelledError, TaskTimeoutError, cancellable, deadline
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

__all__ = [
    "Event",
    "MessagesNotStoredError",
    "PipesCloudStorageMessageWriter",
    "PipesCloudStorageMessageWriterChannel",
    "TaskCancelledError",
    "TaskTimeoutError",
    "answer_errors_as_json",
    "cancel_calls",
    "cancellable",
    "configure_logging",
    "deadline",
    "event_input",
    "forward_logs",
    "is_cancellation",
    "open_pipes",
    "read_event",
    "report_asset_observation",
    "trace_id",
]
