"""A proxy between two parts that talk by HTTP, and what it can do to their requests."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Response:
    """An answer, ready to be sent on."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request that has come in. `forward` sends it on, and returns the answer."""

    method: str
    path: str
    forward: Callable[[], Response]


Fault = Callable[[Request], Response | None]
"""Answers a request, or cuts its connection by None."""


def answer(status: int, body: bytes = b"") -> Fault:
    """The answer of someone who does not send the request on."""
    return lambda request: Response(status, body)


def answer_after(status: int) -> Fault:
    """Send the request on, and give another answer than the one that comes back."""

    def fault(request: Request) -> Response:
        request.forward()
        return Response(status)

    return fault


def cut(request: Request) -> None:
    """Cut the connection without sending the request on."""


def cut_after(request: Request) -> None:
    """Cut the connection when the answer has come."""
    request.forward()


def cut_meanwhile(seconds: float) -> Fault:
    """Cut the caller's connection after `seconds`, while the request is being worked on."""

    def fault(request: Request) -> None:
        threading.Thread(target=request.forward).start()
        threading.Event().wait(seconds)

    return fault


def change_body(change: Callable[[bytes], bytes]) -> Fault:
    """Change the body of the answer, and leave out the checksums that would tell."""

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
    return request.method == "POST" and request.path.startswith("/upload/")


class FaultProxy:
    """A running proxy.

    Attributes:
        url: Where it is.
        seen: The method and path of each request, in the order in which they came.
        in_flight: How many requests are being worked on.
        connections: How many connections were made.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[tuple[str, str]] = []
        self.in_flight = 0
        self.connections = 0
        self._faults: list[tuple[Callable[[Request], bool], Iterator[Fault]]] = []

    def fail(self, *faults: Fault, when: Callable[[Request], bool] = lambda request: True) -> None:
        """Do these, one after the other, to the requests that `when` holds for."""
        self._faults.append((when, iter(faults)))

    def fail_always(
        self, fault: Fault, when: Callable[[Request], bool] = lambda request: True
    ) -> None:
        """Do this to all requests that `when` holds for."""
        self._faults.append((when, iter(lambda: fault, None)))

    def reset(self) -> None:
        """Pass all requests on, and forget those that were seen."""
        self._faults.clear()
        self.seen.clear()

    def handle(self, request: Request) -> Response | None:
        """Answer a request, by a fault or by sending it on."""
        self.seen.append((request.method, request.path))
        for when, faults in self._faults:
            if when(request) and (fault := next(faults, None)):
                return fault(request)
        return request.forward()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted


@contextmanager
def fault_proxy(target: str) -> Iterator[FaultProxy]:
    """Run a proxy before the server at the URL `target` while the block runs."""
    address = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            proxy.connections += 1

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def forward() -> Response:
                connection = http.client.HTTPConnection(address, timeout=120)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                try:
                    connection.request(self.command, self.path, body, headers)
                    answered = connection.getresponse()
                    return Response(answered.status, answered.read(), dict(answered.getheaders()))
                except OSError:
                    return Response(-1)
                finally:
                    connection.close()

            proxy.in_flight += 1
            try:
                response = proxy.handle(Request(self.command, self.path, forward))
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
            """Say nothing."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
