"""Prepares the database for a code location that is about to start.

It creates or migrates the tables. Then it fails the runs that were in progress: their processes
ended with the code location before, which Dagster does not notice. Dagster then executes them
again, from failure, as `run_retries` in dagster.yaml says.
"""

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from migrate import migrate

_IN_PROGRESS = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
_MESSAGE = "The process of this run ended with the code location, which then was started again."


def main() -> None:
    """Prepare the database of the instance in DAGSTER_HOME."""
    with DagsterInstance.get() as instance:
        migrate(instance)
        for run in instance.get_runs(RunsFilter(statuses=_IN_PROGRESS)):
            if run.status == DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, _MESSAGE)
            else:
                instance.report_run_failed(run, _MESSAGE)
            print(f"Run {run.run_id} had ended with the code location.")


if __name__ == "__main__":
    main()
