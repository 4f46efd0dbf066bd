"""The function's side of Dagster Pipes: requests in, messages out through Cloud Storage.

This package belongs to the template and is updated with it. Business logic lives in `tasks/`.
"""

from gcp_pipes.deadline import TaskTimeoutError, deadline
from gcp_pipes.logs import configure_logging, forward_logs
from gcp_pipes.message_writer import (
    MessagesNotStoredError,
    PipesCloudStorageMessageWriter,
    PipesCloudStorageMessageWriterChannel,
)
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
    "TaskTimeoutError",
    "answer_errors_as_json",
    "configure_logging",
    "deadline",
    "event_input",
    "forward_logs",
    "open_pipes",
    "read_event",
    "trace_id",
]
