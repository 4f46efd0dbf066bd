"""Fails the runs that ended with an earlier code location, which Dagster does not notice.

    python fail_interrupted_runs.py 2026-01-31T12:00:00Z

The argument is when the code location has started. Run it when that serves: Dagster then executes
these runs again at once, from failure, as `run_retries` in dagster.yaml says, and needs it.
"""

import sys
from datetime import UTC, datetime

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

_IN_PROGRESS = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
_MESSAGE = "The process of this run ended with the code location, which then was started again."


def main(started: str) -> None:
    """Fail the runs of the instance in DAGSTER_HOME, and finish those that were being canceled.

    Args:
        started: When the code location has started, in the format of ISO 8601.
    """
    before = datetime.fromisoformat(started).astimezone(UTC)
    interrupted = RunsFilter(statuses=_IN_PROGRESS, updated_before=before)
    with DagsterInstance.get() as instance:
        for run in instance.get_runs(interrupted):
            if run.status == DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, _MESSAGE)
            else:
                instance.report_run_failed(run, _MESSAGE)
            print(f"Run {run.run_id} had ended with the code location.")


if __name__ == "__main__":
    main(*sys.argv[1:])
