"""Posts failed runs to a webhook, in the format of Slack."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import requests

from gcp_pipes.orchestrator.outcome import LOGS_SUFFIX

_TIMEOUT = 10.0  # seconds


def post_failed_run(context: dg.RunFailureSensorContext, webhook: str) -> None:
    """Post a failed run: its assets, the first line of each error, and the logs.

    Args:
        context: The context of a sensor of failed runs.
        webhook: The URL, which is a secret.

    Raises:
        dagster.Failure: The webhook could not be called.
    """
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
    """The first line of the error of each step, with a link to the logs of its call."""
    for event in context.get_step_failure_events():
        data: Any = event.event_specific_data
        failure = data.user_failure_data
        text = (failure and failure.description) or (data.error and data.error.message) or ""
        first_line, *_ = text.strip().split("\n")
        line = f"{event.step_key}: {first_line}"
        metadata = failure.metadata if failure else {}
        for name, value in metadata.items():
            if name.endswith(LOGS_SUFFIX) and isinstance(value, dg.UrlMetadataValue):
                line += f" (<{value.url}|logs>)"
        yield line
