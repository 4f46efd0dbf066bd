"""How an execution of a Cloud Run job ended, by the Cloud Run Admin API."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import requests
from google.api_core.exceptions import GoogleAPICallError
from google.cloud import run_v2

from gcp_pipes.orchestrator.executions import API_ERRORS
from gcp_pipes.orchestrator.http import never_connected
from gcp_pipes.orchestrator.launcher import Ending, Outcome

_HINTS = {
    403: "Grant roles/run.jobsExecutorWithOverrides and roles/run.viewer on the job, or "
    "roles/run.developer, or a role with run.jobs.runWithOverrides, "
    "run.executions.get, run.executions.list, run.executions.cancel and run.tasks.list.",
    404: "Check the name of the job, its project and its region.",
    429: "The quota of the Cloud Run Admin API is used up, or too many executions are running.",
}
_CANCELLED = {
    run_v2.Condition.ExecutionReason.CANCELLED,
    run_v2.Condition.ExecutionReason.CANCELLING,
    run_v2.Condition.ExecutionReason.DELETED,
}


@dataclass(frozen=True)
class ExecutionEnding(Ending):
    """How an execution ended.

    Attributes:
        execution: Its full name; empty if none was started.
        state: What the API says of it.
    """

    execution: str = ""
    state: str = ""

    def details(self) -> dict[str, str]:
        """The execution, its state, and its page in the console."""
        if not self.execution:
            return {}
        name = self.execution.rpartition("/")[2]
        return {"execution": name, "state": self.state, "console": _console_url(self.execution)}


def task_ending(
    execution: run_v2.Execution, task: run_v2.Task | None, seconds: float
) -> ExecutionEnding:
    """How a task of an execution ended.

    Args:
        execution: The execution.
        task: The task; None for that of an execution with one, or if it is not known.
        seconds: How long it was waited for.
    """
    state, reason = _state(execution.conditions if task is None else task.conditions)
    errors = {
        "running": f"The execution had not ended after {seconds:.0f} s.",
        "cancelled": "The execution was cancelled.",
        "failed": f"The execution failed: {reason or 'no reason is known.'}",
    }
    if state == "running" and execution.completion_time:  # it has started no container
        state = "failed"
    counted = f"{execution.succeeded_count} of {execution.task_count} tasks succeeded"
    return ExecutionEnding(
        Outcome.UNKNOWN if state == "running" else Outcome.FINISHED,
        errors.get(state),
        seconds,
        hint="See its logs.",
        logs_url=execution.log_uri or None,
        execution=execution.name,
        state=f"{state}, {counted}",
    )


def closed_ending(name: str, execution: run_v2.Execution | None, seconds: float) -> ExecutionEnding:
    """How a task ended by its messages, while the API does not say so yet.

    Args:
        name: The name of the execution.
        execution: The execution, as far as it is known.
        seconds: How long it was waited for.
    """
    logs = execution.log_uri if execution is not None else None
    return ExecutionEnding(
        Outcome.FINISHED, None, seconds, logs_url=logs or None, execution=name, state="closed"
    )


def rejection(error: Exception, seconds: float) -> ExecutionEnding:
    """How an attempt ended of which there is no execution.

    Args:
        error: Why there is none.
        seconds: How long that took.
    """
    if not isinstance(error, API_ERRORS):
        return ExecutionEnding(Outcome.FINISHED, str(error), seconds)
    status = error.code if isinstance(error, GoogleAPICallError) else None
    # Without the URL of the request, which comes first.
    text = re.sub(r"^[A-Z]+ \S+: ", "", getattr(error, "message", str(error)))
    may_retry = status in (None, 409, 429) or may_have_started(error)
    return ExecutionEnding(
        Outcome.NOT_STARTED if may_retry else Outcome.FINISHED,
        f"The Cloud Run Admin API responded {status}: {text}" if status else text,
        seconds,
        hint=_HINTS.get(status or 0, ""),
        may_start_late=may_have_started(error),
        is_refused=status in (401, 403, 404),
    )


def may_have_started(error: Exception) -> bool:
    """Whether a request may have started an execution, although it failed.

    Args:
        error: The error that it failed with.
    """
    if not isinstance(error, API_ERRORS):  # the response could not be read
        return True
    if isinstance(error, GoogleAPICallError):
        return error.code is None or error.code >= 500 or error.code in (408, 499)
    return isinstance(error, requests.RequestException) and not never_connected(error)


def _console_url(execution: str) -> str:
    """The page of an execution in Google Cloud's console."""
    _, project, _, region, _, _, _, name = execution.split("/")
    return (
        f"https://console.cloud.google.com/run/jobs/executions/details/{region}/{name}"
        f"?{urlencode({'project': project})}"
    )


def _state(conditions: Sequence[run_v2.Condition]) -> tuple[str, str]:
    """How an execution or a task ended, and why. One that was cancelled is no success."""
    found = (each for each in conditions if each.type_ == "Completed")
    completed = next(found, run_v2.Condition())
    if completed.execution_reason in _CANCELLED:
        return "cancelled", completed.message
    states = {
        run_v2.Condition.State.CONDITION_SUCCEEDED: "succeeded",
        run_v2.Condition.State.CONDITION_FAILED: "failed",
    }
    return states.get(completed.state, "running"), completed.message
