"""Runs that Dagster's daemon launches from its queue: a sensor requests them all at once."""

import os

import dagster as dg

NUMBER = int(os.environ["RUNS"])


@dg.op
def nothing() -> None:
    """Return."""


@dg.job(executor_def=dg.in_process_executor)
def one_process() -> None:
    """Run the step in the run's own process."""
    nothing()


@dg.sensor(job=one_process, default_status=dg.DefaultSensorStatus.RUNNING)
def at_once(context: dg.SensorEvaluationContext) -> list[dg.RunRequest]:
    """Request the runs. Their keys are the same each time, so there are no further ones."""
    return [dg.RunRequest(run_key=str(number)) for number in range(NUMBER)]


defs = dg.Definitions(jobs=[one_process], sensors=[at_once])
