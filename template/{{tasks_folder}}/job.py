"""The Cloud Run job: runs a task for Dagster, and sends messages back."""

from google.cloud import storage

import tasks
from gcp_pipes.external import (
    PipesCloudStorageMessageWriter,
    configure_logging,
    find_task,
    forward_logs,
    job_event,
    open_pipes,
    run_task,
    seconds_left,
)
from settings import forward_output, heartbeat_interval, messages_bucket

configure_logging()


def main() -> None:
    """Run the task of this execution. If it fails, so does the execution."""
    client = storage.Client()
    message_writer = PipesCloudStorageMessageWriter(
        client=client, bucket=messages_bucket(), heartbeat_interval=heartbeat_interval()
    )
    with (
        job_event(client) as event,
        open_pipes(event, message_writer=message_writer) as pipes,
        forward_logs(pipes, output=forward_output()),
    ):
        run_task(
            lambda: find_task(tasks, pipes, event)(pipes, event),
            seconds=seconds_left(event),
            message_writer=message_writer,
        )


if __name__ == "__main__":
    main()
