"""The parts of urllib3 that have no public name, overridden here and nowhere else.

`tests/orchestrator/test_urllib3_internals.py` fails if a new version of urllib3 changes them.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager

_LONGEST_IDLE = 1.0  # seconds between two requests on a connection; gunicorn closes it after two


_of_thread = threading.local()  # whose attribute `request` is the `_Request` of the thread


class _Request:
    """A request that can be interrupted.

    Attributes:
        lock: Guards the connection, which another request may use next.
        connection: The connection that it uses; None before it has one, and after its end.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: Any = None

    def interrupt(self) -> None:
        """Shut its connection down; it does nothing after its end."""
        with self.lock:
            if self.connection is not None and self.connection.sock is not None:
                with suppress(OSError):  # it is closed already
                    # Not the method of a TLS socket, which another thread must not call.
                    socket.socket.shutdown(self.connection.sock, socket.SHUT_RDWR)


class _Pool(HTTPConnectionPool):
    """Connections to a host. One that has been idle for long is not used again.

    The server may be closing it at that moment. A request that is sent then is lost, and it is not
    known whether it reached the function.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last_used: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)
        now = time.monotonic()
        if now - self._last_used.get(connection, now) > _LONGEST_IDLE:
            connection.close()  # the request opens it again
        if (request := getattr(_of_thread, "request", None)) is not None:
            request.connection = connection
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            self._last_used[conn] = time.monotonic()
        super()._put_conn(conn)


class _HTTPSPool(_Pool, HTTPSConnectionPool):
    """The same, encrypted."""


def close_idle_connections(manager: PoolManager) -> None:
    """Let each pool of a manager close connections that have been idle for a second."""
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _HTTPSPool}


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Let other threads interrupt the request that the block makes, which then loses its response.

    Yields:
        A function that interrupts it. It does nothing to later requests of the thread.
    """
    request = _of_thread.request = _Request()
    try:
        yield request.interrupt
    finally:
        _of_thread.request = None
        with request.lock:
            request.connection = None
