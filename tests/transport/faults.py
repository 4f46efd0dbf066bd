"""A proxy between an HTTP client and its server, and the faults that it can inject."""

import http.client
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Response:
    """A response to send to the client."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request that was received. `forward` sends it to the server and returns the response."""

    method: str
    path: str
    forward: Callable[[], Response]


Fault = Callable[[Request], Response | None]
"""Responds to a request, or returns None to cut its connection."""


def respond(status: int, body: bytes = b"") -> Fault:
    """Respond without sending the request to the server."""
    return lambda request: Response(status, body)


def respond_after(status: int) -> Fault:
    """Send the request to the server, and replace its response."""

    def fault(request: Request) -> Response:
        request.forward()
        return Response(status)

    return fault


class LateRequest:
    """A request that gets a response before it reaches the server.

    Args:
        status: The status of the response.

    Attributes:
        response: The server's own response, once it has responded.
    """

    def __init__(self, status: int) -> None:
        self._status = status
        self._forward: Callable[[], Response] | None = None
        self.response: Response | None = None

    def __call__(self, request: Request) -> Response:
        """Respond without sending the request to the server."""
        self._forward = request.forward
        return Response(self._status)

    def arrive(self) -> None:
        """Send the request to the server, and wait for its response."""
        assert self._forward is not None
        self.response = self._forward()

    def start(self, writes: "FaultProxy") -> None:
        """Send the request to the server, and wait until the function has stored a chunk.

        Args:
            writes: The proxy between the function and the storage.
        """
        stored = threading.Event()

        def observe(request: Request) -> Response:
            response = request.forward()
            if response.status == 200:
                stored.set()
            return response

        writes.fail_always(observe, when=is_upload)
        threading.Thread(target=self.arrive).start()
        assert stored.wait(30)


def cut(request: Request) -> None:
    """Cut the connection without sending the request to the server."""


def cut_after(request: Request) -> None:
    """Cut the connection after the server has responded."""
    request.forward()


def cut_meanwhile(seconds: float) -> Fault:
    """Cut the client's connection after `seconds`, while the server handles the request."""

    def fault(request: Request) -> None:
        threading.Thread(target=request.forward).start()
        threading.Event().wait(seconds)

    return fault


def change_body(change: Callable[[bytes], bytes]) -> Fault:
    """Change the body of the response, and remove the checksums that would reveal it."""

    def fault(request: Request) -> Response:
        response = request.forward()
        response.body = change(response.body)
        response.headers = {
            name: value
            for name, value in response.headers.items()
            if name.lower() not in ("x-goog-hash", "etag", "content-md5")
        }
        return response

    return fault


def is_upload(request: Request) -> bool:
    """Whether the function stores a chunk."""
    is_stored = request.method == "POST" and request.path.startswith("/upload/")
    return is_stored and not is_heartbeat(request)


def is_heartbeat(request: Request) -> bool:
    """Whether the function stores a heartbeat, perhaps of an earlier call that still runs."""
    return request.path.endswith("&fields=name")


class FaultProxy:
    """A running proxy.

    Attributes:
        url: Its URL.
        seen: The method and path of each request, in order.
        in_flight: How many requests are in flight.
        connections: How many connections were made.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[tuple[str, str]] = []
        self.in_flight = 0
        self.connections = 0
        self._faults: list[tuple[Callable[[Request], bool], Iterator[Fault]]] = []

    def fail(self, *faults: Fault, when: Callable[[Request], bool] = lambda request: True) -> None:
        """Inject these faults, one for each request that matches `when`."""
        self._faults.append((when, iter(faults)))

    def fail_always(
        self, fault: Fault, when: Callable[[Request], bool] = lambda request: True
    ) -> None:
        """Inject this fault for all requests that match `when`."""
        self._faults.append((when, iter(lambda: fault, None)))

    def reset(self) -> None:
        """Inject no more faults, and clear `seen`."""
        self._faults.clear()
        self.seen.clear()

    def handle(self, request: Request) -> Response | None:
        """Respond to a request, by a fault or from the server."""
        self.seen.append((request.method, request.path))
        for when, faults in self._faults:
            if when(request) and (fault := next(faults, None)):
                return fault(request)
        return request.forward()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted

    def handle_error(self, request: object, client_address: object) -> None:
        """Print errors, except that a client is gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def fault_proxy(target: str) -> Iterator[FaultProxy]:
    """Run a proxy for the server at the URL `target` while the block runs."""
    address = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            proxy.connections += 1

        def handle_any(self) -> None:
            # Kept, since a request may be forwarded after the next one on its connection.
            method, path = self.command, self.path
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def forward() -> Response:
                connection = http.client.HTTPConnection(address, timeout=120)
                try:
                    connection.request(method, path, body, headers)
                    response = connection.getresponse()
                    return Response(response.status, response.read(), dict(response.getheaders()))
                except OSError:
                    return Response(-1)
                finally:
                    connection.close()

            proxy.in_flight += 1
            try:
                response = proxy.handle(Request(method, path, forward))
            finally:
                proxy.in_flight -= 1
            if response is None or response.status == -1:
                self.close_connection = True
                return
            self.send_response(response.status)
            for name, value in response.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
