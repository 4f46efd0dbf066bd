"""The HTTP request that calls a cloud function, and what its response means."""

import json
import random
import re
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urljoin

import requests
from google.auth.exceptions import GoogleAuthError
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError, ProxyError

from gcp_pipes.orchestrator.redaction import redact
from gcp_pipes.orchestrator.urllib3_internals import close_idle_connections

_CONNECT_TIMEOUT = 10.0  # seconds
_FIRST_DELAY = 0.5  # seconds before the first retry
_MOST_CONNECTIONS = 1_000  # kept for further calls, to one host
_ERROR_TEXT_LIMIT = 2_000  # characters
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


class Outcome(Enum):
    """What the response to a request says of the call, or the lack of a response."""

    FINISHED = "The function has finished."
    NOT_STARTED = "The function did not start. The request can be retried."
    UNKNOWN = (
        "The response was lost. The function may be running, or have finished, or not started."
    )


@dataclass(frozen=True)
class CloudFunctionResponse:
    """How a request to a cloud function ended.

    Attributes:
        outcome: What that means for the call.
        status: The HTTP status; None if there was no response.
        error: What went wrong; None for a status of 2xx.
        seconds: How long the request took.
        body: The body of a response of 2xx.
    """

    outcome: Outcome
    status: int | None
    error: str | None
    seconds: float
    body: bytes = b""

    @property
    def may_start_late(self) -> bool:
        """Whether a function that did not start may have the request, and start after all."""
        return self.outcome is Outcome.NOT_STARTED and self.status in (500, 502, 503)


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
        outcome = Outcome.NOT_STARTED if _never_connected(error) else Outcome.UNKNOWN
        return CloudFunctionResponse(outcome, None, str(error), time.monotonic() - started)
    except GoogleAuthError as error:  # an expired or refused token could not be replaced
        problem = f"could not get an identity token: {error}"
        return CloudFunctionResponse(Outcome.NOT_STARTED, None, problem, time.monotonic() - started)
    except ValueError as error:  # requests parses the target even if it does not follow it
        problem = f"the target of a redirect could not be parsed: {error}."
        return CloudFunctionResponse(Outcome.FINISHED, None, problem, time.monotonic() - started)
    is_ok = 200 <= response.status_code < 300
    return CloudFunctionResponse(
        _outcome(response),
        response.status_code,
        None if is_ok else _error_text(response),
        time.monotonic() - started,
        response.content if is_ok else b"",
    )


def trace_headers(trace: str, run_id: str) -> dict[str, str]:
    """The headers by which Google Cloud finds what a function logs of a request.

    Args:
        trace: The ID of the request's trace: 32 hexadecimal digits.
        run_id: The ID of the Dagster run.
    """
    return {
        "traceparent": f"00-{trace}-{uuid.uuid4().hex[:16]}-00",
        "Function-Execution-Id": run_id,
    }


def retry_delays(longest: float) -> Iterator[float]:
    """Seconds to wait before each retry: exponential backoff with jitter.

    Args:
        longest: The longest delay in seconds.
    """
    delay = _FIRST_DELAY
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311  # nothing to keep secret
        delay = max(min(2 * delay, longest), _FIRST_DELAY)


def _outcome(response: requests.Response) -> Outcome:
    """What a response means. 429, 503 and 504 come from Google's front end.

    So do 500 and 502 without the function's own error: Google responds 500 if it has no instance
    for a request: https://cloud.google.com/run/docs/troubleshooting#500
    """
    match response.status_code:
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
    except (ValueError, KeyError, TypeError):
        return None
    return error if isinstance(error, str) else None


def _never_connected(error: requests.RequestException) -> bool:
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return isinstance(cause, ConnectTimeoutError | NewConnectionError | ProxyError)


def _error_text(response: requests.Response) -> str:
    """The error in the JSON body, or the text of the body.

    Google's front end sends a page of HTML, and the reason why it rejects a token in a header.
    """
    if is_redirect(response.status_code):
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
    except (ValueError, RecursionError):
        return text
    redacted = redact(value)
    return text if redacted == value else json.dumps(redacted, ensure_ascii=False)


def is_redirect(status: int | None) -> bool:
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
