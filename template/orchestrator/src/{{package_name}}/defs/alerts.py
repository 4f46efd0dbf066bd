"""Posts each failed run to a webhook, such as that of a Slack channel.

Set `ALERT_WEBHOOK` to the webhook's URL, and start the sensor on the page "Automation".
"""

import os
from collections.abc import Iterator
from typing import Any

import dagster as dg
import requests

_TIMEOUT = 10.0  # seconds


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.STOPPED)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Post a failed run: its assets, the first line of each error, and the function's logs."""
    webhook = os.environ.get("ALERT_WEBHOOK")
    if not webhook:
        raise dg.Failure("ALERT_WEBHOOK is not set. Set it to the webhook's URL, a secret.")
    try:
        response = requests.post(webhook, json={"text": _text(context)}, timeout=_TIMEOUT)
        response.raise_for_status()
    except requests.RequestException as error:
        # Its text would have the URL, which is a secret, in the sensor's log.
        raise dg.Failure(f"The webhook could not be called: {type(error).__name__}.") from None


def _text(context: dg.RunFailureSensorContext) -> str:
    run = context.dagster_run
    assets = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ()))
    errors = list(_errors(context)) or [context.failure_event.message or "without an error"]
    return "\n".join([f"Run {run.run_id[:8]} of {assets or run.job_name} failed", *errors])


def _errors(context: dg.RunFailureSensorContext) -> Iterator[str]:
    """The first line of the error of each step, with a link to the function's logs."""
    for event in context.get_step_failure_events():
        data: Any = event.event_specific_data
        failure = data.user_failure_data
        text = (failure and failure.description) or (data.error and data.error.message) or ""
        first_line, *_ = text.strip().split("\n")
        line = f"{event.step_key}: {first_line}"
        if failure and (logs := failure.metadata.get("cloud_function_logs")):
            line += f" (<{logs.value}|logs>)"
        yield line
