"""Launches the calls of a step in a cloud function, by HTTP."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

import requests
from dagster_pipes import PipesContextData

from gcp_pipes.orchestrator.auth import explain_auth_error
from gcp_pipes.orchestrator.event import Event, request_body, serialize
from gcp_pipes.orchestrator.http import (
    CloudFunctionResponse,
    invoke_cloud_function,
    trace_headers,
)
from gcp_pipes.orchestrator.launcher import Launch, Launcher, PipesCallError
from gcp_pipes.orchestrator.urllib3_internals import interruptible
from gcp_pipes.orchestrator.urls import is_loopback
from gcp_pipes.protocol import CANCEL_PARAMETER

_MARGIN = 10.0  # seconds that a response may come after the timeout of its call


class PipesCloudFunctionError(PipesCallError):
    """A call of a cloud function failed. It fails the step."""


class CloudFunctionLauncher(Launcher):
    """Calls a cloud function.

    Args:
        function_url: The function's URL.
        http_session: The session for the function, with its credentials.
        has_context_in_body: Whether the Pipes context is sent in the body of the request.
        project: The Google Cloud project of the function, for the link to its logs.
    """

    what = "cloud function"
    target_kind = "url"
    error = PipesCloudFunctionError
    deploy = "deploy the function"
    cancels_only_accepted = True

    def __init__(
        self,
        function_url: str,
        http_session: requests.Session,
        *,
        has_context_in_body: bool,
        project: str | None,
    ) -> None:
        self.target = function_url
        self._http_session = http_session
        self._has_context_in_body = has_context_in_body
        self._project = project
        if is_loopback(function_url):  # no instance has to start
            self.time_to_start = _MARGIN

    def serialize(self, event: Event, context_data: PipesContextData) -> bytes:
        """The event as JSON.

        Args:
            event: The inputs of the task.
            context_data: The Pipes context.

        Raises:
            EventError: An input is not JSON serializable, or the body is too large.
        """
        return serialize(event, context_data if self._has_context_in_body else None)

    def launch(self, launch: Launch) -> CloudFunctionResponse:
        """Post the event, with the parameters of Pipes, and wait for the response."""
        with interruptible() as launch.handler.interrupt:
            response = invoke_cloud_function(
                self._http_session,
                url=self.target,
                data=request_body(launch.event, launch.parameters),
                headers=trace_headers(
                    launch.trace, launch.session.context_data["run_id"], launch.trace_context
                ),
                timeout=launch.timeout + _MARGIN,
            )
        return explain_rejection(self._http_session, response)

    def cancel(self, calls: Sequence[Mapping[str, Any]], timeout: float) -> str | None:
        """Send a request that cancels calls. The right to call the function is enough.

        Args:
            calls: The calls.
            timeout: How long to wait for the response, in seconds.

        Returns:
            Why that failed, or None.
        """
        response = invoke_cloud_function(
            self._http_session,
            url=self.target,
            data=json.dumps({CANCEL_PARAMETER: calls}).encode(),
            headers={},
            timeout=timeout,
        )
        return response.error

    def logs_url(self, trace: str, run_id: str) -> str | None:
        """The page of Cloud Logging with what the function logged; None on this machine.

        Args:
            trace: The ID of the request's trace.
            run_id: The ID of the run.
        """
        return logs_url(self._project, self.target, trace, run_id)


def explain_rejection(
    http_session: requests.Session, response: CloudFunctionResponse
) -> CloudFunctionResponse:
    """The response, with what to do if the function has rejected the credentials."""
    if response.status not in (401, 403):
        return response
    return replace(response, hint=explain_auth_error(http_session, response.status))


def logs_url(project: str | None, function_url: str, trace: str, run_id: str) -> str | None:
    """The page of Cloud Logging with what a function logged of a call; None on this machine.

    Google may give the request another trace than that of the call, so the page also finds it by
    the run, which the function adds to what it logs during the call.
    """
    if project is None or is_loopback(function_url):
        return None
    by_trace, by_run = f"projects/{project}/traces/{trace}", f'labels.dagster_run_id="{run_id}"'
    query = quote(f'trace="{by_trace}" OR {by_run}', safe="")
    return (
        f"https://console.cloud.google.com/logs/query;query={query}"
        f"?{urlencode({'project': project})}"
    )
