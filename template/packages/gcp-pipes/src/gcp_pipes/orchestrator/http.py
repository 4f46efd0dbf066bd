"""The HTTP request that calls a cloud function, and what its response means."""

import json
import re
import socket
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import requests
from google.auth.exceptions import GoogleAuthError
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError, ProxyError

from gcp_pipes.orchestrator.launcher import Ending, Outcome
from gcp_pipes.orchestrator.redaction import redact
from gcp_pipes.orchestrator.urllib3_internals import close_idle_connections

_CONNECT_TIMEOUT = 10.0  # seconds
_MOST_CONNECTIONS = 1_000  # kept for further calls, to one host
_ERROR_TEXT_LIMIT = 2_000  # characters
_HINTS = {
    None: "Check that FUNCTION_URL is the function's own URL and that the function is running.",
    404: "Check that FUNCTION_URL is the function's own URL and that the function is deployed.",
    429: "The function has no free instance: raise its maximum of instances or its concurrency.",
}
_REDIRECTED = "Redirects are not followed: set FUNCTION_URL to the function's own https URL."
_SIGN_IN = (
    "That is a Google sign-in page: Identity-Aware Proxy, or another sign-in, protects the URL "
    "that was called."
)
_SIGN_IN_PAGE = r"https://(accounts\.google\.com|iap\.googleapis\.com)(/|$)"

if sys.platform == "darwin":
    _IDLE_TIME = socket.TCP_KEEPALIVE
else:
    _IDLE_TIME = socket.TCP_KEEPIDLE

# Probes on a connection that is idle while the function works. Without them, Google Cloud's
# network drops the connection after 10 to 20 minutes, and the response is lost.
_KEEPALIVE_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, _IDLE_TIME, 60),  # seconds without data before the first probe
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),  # seconds between two probes
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),  # unanswered probes that end the connection
]


@dataclass(frozen=True)
class CloudFunctionResponse(Ending):
    """How a request to a cloud function ended.

    Attributes:
        status: The HTTP status; None if there was no response.
        body: The body of a response of 2xx.
    """

    status: int | None = None
    body: bytes = b""

    @property
    def late_start(self) -> str:
        """What happened, if it has started after all."""
        return f"Google responded {self.status}, but the function started later"

    def explain(self, what: str) -> str | None:
        """What went wrong by the response, or without one, and what to do; None for 2xx."""
        if self.error is None:
            return None
        status = f"responded {self.status}" if self.status else "could not be reached"
        return f"The {what} {status}: {self.error} {self.hint or self._hint()}"

    def details(self) -> dict[str, str]:
        """The status."""
        return {"status": "none" if self.status is None else str(self.status)}

    def _hint(self) -> str:
        if _is_redirect(self.status):
            return _REDIRECTED
        if self.may_start_late:
            return "The function could not start, or its instance crashed: see its logs."
        return _HINTS.get(self.status, "See its logs.")


class CloudFunctionAdapter(HTTPAdapter):
    """Keeps a connection for each call in flight, and keeps waiting connections alive."""

    def __init__(self) -> None:
        super().__init__(pool_maxsize=_MOST_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, with TCP keepalive."""
        super().init_poolmanager(*args, **kwargs, socket_options=_KEEPALIVE_OPTIONS)
        close_idle_connections(self.poolmanager)


def invoke_cloud_function(
    session: requests.Session,
    *,
    url: str,
    data: bytes,
    headers: Mapping[str, str],
    timeout: float,
) -> CloudFunctionResponse:
    """Post `data` to the function at `url`. Redirects are not followed."""
    started = time.monotonic()
    try:
        response = session.post(
            url,
            data=data,
            headers={"Content-Type": "application/json", **headers},
            timeout=(_CONNECT_TIMEOUT, timeout),
            allow_redirects=False,  # the POST would become a GET without a body
        )
    except requests.RequestException as error:
        outcome = Outcome.NOT_STARTED if never_connected(error) else Outcome.UNKNOWN
        return CloudFunctionResponse(outcome, str(error), time.monotonic() - started)
    except GoogleAuthError as error:  # an expired or refused token could not be replaced
        problem = f"could not get an identity token: {error}"
        return CloudFunctionResponse(Outcome.NOT_STARTED, problem, time.monotonic() - started)
    except ValueError as error:  # requests parses the target even if it does not follow it
        problem = f"the target of a redirect could not be parsed: {error}."
        return CloudFunctionResponse(Outcome.FINISHED, problem, time.monotonic() - started)
    status, outcome = response.status_code, _outcome(response)
    is_ok = 200 <= status < 300
    return CloudFunctionResponse(
        outcome,
        None if is_ok else _error_text(response),
        time.monotonic() - started,
        # The function may have the request. 429 comes from Google, which had no instance for it.
        may_start_late=outcome is Outcome.NOT_STARTED and status in (500, 502, 503),
        is_conflict=status == 409,
        is_refused=status in (401, 403, 404) or _is_redirect(status),
        status=status,
        body=response.content if is_ok else b"",
    )


def trace_headers(trace: str, run_id: str, trace_context: Mapping[str, str]) -> dict[str, str]:
    """The headers by which Google Cloud finds what a function logs of a request.

    Args:
        trace: The ID of the request's trace: 32 hexadecimal digits.
        run_id: The ID of the Dagster run.
        trace_context: The headers of the call's span; empty without one.
    """
    return {
        "traceparent": f"00-{trace}-{uuid.uuid4().hex[:16]}-00",
        "Function-Execution-Id": run_id,
        **trace_context,
    }


def _outcome(response: requests.Response) -> Outcome:
    """What a response means. 429, 503 and 504 come from Google's front end.

    So do 500 and 502 without the function's own error: Google responds 500 if it has no instance
    for a request: https://cloud.google.com/run/docs/troubleshooting#500
    """
    match response.status_code:
        case 429 if "json" in response.headers.get("Content-Type", ""):
            return Outcome.FINISHED  # the function's own
        case 429 | 503:
            return Outcome.NOT_STARTED
        case 504:
            return Outcome.UNKNOWN
        case 500 | 502 if _function_error(response) is None:
            return Outcome.NOT_STARTED
        case _:
            return Outcome.FINISHED


def _function_error(response: requests.Response) -> str | None:
    """The error in a response of the function itself: `{"error": "..."}`."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return error if isinstance(error, str) else None


def never_connected(error: requests.RequestException) -> bool:
    """Whether no connection was made, so the server cannot have the request."""
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return isinstance(cause, ConnectTimeoutError | NewConnectionError | ProxyError)


def _error_text(response: requests.Response) -> str:
    """The error in the JSON body, or the text of the body.

    Google's front end sends a page of HTML, and the reason why it rejects a token in a header.
    """
    if _is_redirect(response.status_code):
        return _redirect_text(response)
    if challenge := response.headers.get("WWW-Authenticate"):
        return f"{response.reason} ({challenge})."
    if response.text.lstrip().startswith("<"):
        return f"{response.reason}."
    text = _function_error(response) or _redacted(response.text)[:_ERROR_TEXT_LIMIT]
    return text or f"{response.reason}."


def _redacted(text: str) -> str:
    """The text of a response; if it is JSON, without secrets."""
    try:
        value = json.loads(text)
        redacted = redact(value)
        return text if redacted == value else json.dumps(redacted, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _is_redirect(status: int | None) -> bool:
    """Whether a status is a redirect, which does not come from the function."""
    return status is not None and 300 <= status < 400


def _redirect_text(response: requests.Response) -> str:
    """The target of a redirect."""
    location = response.headers.get("Location")
    if not location:
        return f"{response.reason}, a redirect without a target."
    try:
        target = urljoin(response.url, location)
    except ValueError:  # it is no URL
        target = location
    text = f"{response.reason}, a redirect to {target[:_ERROR_TEXT_LIMIT]}."
    if re.match(_SIGN_IN_PAGE, target) or "X-Goog-IAP-Generated-Response" in response.headers:
        text = f"{text} {_SIGN_IN}"
    return text
