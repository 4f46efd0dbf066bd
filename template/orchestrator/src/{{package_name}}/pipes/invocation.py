"""The HTTP request that calls a cloud function, and what its answer means."""

import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any
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
    data: Mapping[str, Any],
    headers: Mapping[str, str],
    timeout: float,
) -> CloudFunctionAnswer:
    """Post `data` to the function at `url` as JSON.

    Args:
        session: The session to send the request with.
        url: The function's URL.
        data: The event: a JSON object.
        headers: Headers to send, beside the usual ones.
        timeout: Seconds to wait for the answer.
    """
    started = time.monotonic()
    try:
        response = session.post(
            url, json=data, headers=headers, timeout=(_CONNECT_TIMEOUT, timeout)
        )
    except requests.RequestException as error:
        outcome = Outcome.NOT_STARTED if _never_connected(error) else Outcome.LOST
        return CloudFunctionAnswer(outcome, None, str(error), time.monotonic() - started)
    except GoogleAuthError as error:  # an expired or refused token could not be replaced
        problem = f"no identity token could be had: {error}"
        return CloudFunctionAnswer(Outcome.NOT_STARTED, None, problem, time.monotonic() - started)
    error_text = None if response.ok else _error_text(response)
    return CloudFunctionAnswer(
        _outcome(response.status_code), response.status_code, error_text, time.monotonic() - started
    )


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
    if challenge := response.headers.get("WWW-Authenticate"):
        return f"{response.reason} ({challenge})."
    if response.text.lstrip().startswith("<"):
        return f"{response.reason}."
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:_ERROR_TEXT_LIMIT] or f"{response.reason}."
