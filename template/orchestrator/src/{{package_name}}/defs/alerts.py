"""Posts failed runs to a webhook, such as that of a Slack channel."""

import os

import dagster as dg

from gcp_pipes.orchestrator.alerts import post_failed_run


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.STOPPED)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Post a failed run to `ALERT_WEBHOOK`. Start it on the page "Automation".

    A run that Dagster executes again, such as one that was interrupted, is left out.
    """
    if context.dagster_run.tags.get("dagster/will_retry") == "true":
        return
    webhook = os.environ.get("ALERT_WEBHOOK")
    if not webhook:
        raise dg.Failure("ALERT_WEBHOOK is not set. Set it to the webhook's URL, a secret.")
    post_failed_run(context, webhook)
