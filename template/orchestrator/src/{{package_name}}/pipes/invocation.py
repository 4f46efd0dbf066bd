"""The HTTP request that calls a cloud function, and what its answer means."""

import re
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urljoin
from weakref import WeakKeyDictionary

import requests
from google.auth.exceptions import GoogleAuthError
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError, ProxyError

_CONNECT_TIMEOUT = 10.0  # seconds
_MOST_CONNECTIONS = 1_000  # kept for further calls, to one host
_LONGEST_SILENCE = 1.0  # seconds between two calls on a connection; gunicorn closes it after two
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

# Probes on a connection that is silent while the function works. Without them, Google Cloud's
# network forgets the connection after 10 to 20 minutes, and the answer is lost.
_KEEPALIVE_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, _IDLE_TIME, 60),  # seconds of silence before the first probe
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),  # seconds between two probes
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),  # unanswered probes that end the connection
]


class Outcome(Enum):
    """What is known of a call by its answer, or by the lack of one."""

    ANSWERED = "The function has ended."
    NOT_STARTED = "The function was not reached. It can be called again."
    LOST = "The function may be running, may have ended, may never have begun."


@dataclass(frozen=True)
class CloudFunctionAnswer:
    """How a request to a cloud function ended.

    Attributes:
        outcome: What that means.
        status: The HTTP status, or None if there was no answer.
        error: What went wrong, or None for a status of 2xx.
        seconds: How long the request took.
    """

    outcome: Outcome
    status: int | None
    error: str | None
    seconds: float


class _Pool(HTTPConnectionPool):
    """Connections to a host, of which none is used again that has been silent for long.

    Its other end may be closing it at that moment. A call that is sent then is lost, and whether it
    reached the function, nobody knows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last_used: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)
        now = time.monotonic()
        if now - self.last_used.setdefault(connection, now) > _LONGEST_SILENCE:
            connection.close()  # and is opened anew by the request
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            self.last_used[conn] = time.monotonic()
        super()._put_conn(conn)


class _HTTPSPool(_Pool, HTTPSConnectionPool):
    """The same, encrypted."""


class CloudFunctionAdapter(HTTPAdapter):
    """Keeps connections alive that wait for long, as many as there are calls, and cuts them.

    Without that, a thread that waits for an answer could not be ended before it comes.
    """

    def __init__(self) -> None:
        super().__init__(pool_maxsize=_MOST_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, with TCP keepalive and with pools that know their connections.

        Args:
            args: As in the base class.
            kwargs: As in the base class, but for `socket_options`, which are set here.
        """
        super().init_poolmanager(*args, **kwargs, socket_options=_KEEPALIVE_OPTIONS)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _HTTPSPool}

    def cut_connections(self) -> None:
        """Let each request that waits for its answer fail at once, as if the network had failed."""
        keys = self.poolmanager.pools.keys()
        for pool in [self.poolmanager.pools[key] for key in keys]:
            for connection in list(pool.last_used):
                with suppress(OSError, AttributeError):  # it is closed
                    connection.sock.shutdown(socket.SHUT_RDWR)


def cut_connections(session: requests.Session, url: str) -> None:
    """Let each request of a session to `url` fail at once that waits for its answer.

    Args:
        session: What `http_session` of `identity` made; in any other, nothing is cut.
        url: The function's URL. What the same adapter has sent to other hosts fails, too.
    """
    adapter = session.get_adapter(url)
    if isinstance(adapter, CloudFunctionAdapter):
        adapter.cut_connections()


def invoke_cloud_function(
    session: requests.Session,
    *,
    url: str,
    data: bytes,
    headers: Mapping[str, str],
    timeout: float,
) -> CloudFunctionAnswer:
    """Post `data` to the function at `url`, and nothing to where that may redirect the request.

    Args:
        session: The session to send the request with.
        url: The function's URL.
        data: The body: a JSON object.
        headers: Headers to send, beside the usual ones.
        timeout: Seconds to wait for the answer.
    """
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
        outcome = Outcome.NOT_STARTED if _never_connected(error) else Outcome.LOST
        return CloudFunctionAnswer(outcome, None, str(error), time.monotonic() - started)
    except GoogleAuthError as error:  # an expired or refused token could not be replaced
        problem = f"no identity token could be had: {error}"
        return CloudFunctionAnswer(Outcome.NOT_STARTED, None, problem, time.monotonic() - started)
    except ValueError as error:  # requests reads the target of a redirect that it does not follow
        problem = f"the target of a redirect could not be parsed: {error}."
        return CloudFunctionAnswer(Outcome.ANSWERED, None, problem, time.monotonic() - started)
    status = response.status_code
    error_text = None if 200 <= status < 300 else _error_text(response)
    return CloudFunctionAnswer(_outcome(status), status, error_text, time.monotonic() - started)


def _outcome(status: int) -> Outcome:
    """What a status means. These three come from Google's front end, not from the function."""
    match status:
        case 429 | 503:
            return Outcome.NOT_STARTED
        case 504:
            return Outcome.LOST
        case _:
            return Outcome.ANSWERED


def _never_connected(error: requests.RequestException) -> bool:
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return isinstance(cause, ConnectTimeoutError | NewConnectionError | ProxyError)


def _error_text(response: requests.Response) -> str:
    """What the response says is wrong: `error` in its JSON body, or else its text.

    Google's front end answers with a page for browsers; what it refuses a token for is in a header.
    """
    if is_redirect(response.status_code):
        return _redirect_text(response)
    if challenge := response.headers.get("WWW-Authenticate"):
        return f"{response.reason} ({challenge})."
    if response.text.lstrip().startswith("<"):
        return f"{response.reason}."
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:_ERROR_TEXT_LIMIT] or f"{response.reason}."


def is_redirect(status: int | None) -> bool:
    """Whether a response with this status is none of the function, but leads elsewhere.

    Args:
        status: The HTTP status; None if there was no response.
    """
    return status is not None and 300 <= status < 400


def _redirect_text(response: requests.Response) -> str:
    """Where a request was redirected to."""
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
