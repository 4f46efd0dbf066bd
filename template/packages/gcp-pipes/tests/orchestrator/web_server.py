"""A web server in the place of one of Google's."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple

Response = tuple[int, bytes]
"""The status and the body of a response."""


class WebServer(NamedTuple):
    """A running web server: its host and port, and the bodies of the requests that it received."""

    address: str
    received: list[bytes]


@contextmanager
def web_server(response: Response) -> Iterator[WebServer]:
    """Run a web server that sends the same response to each request."""
    status, body = response
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield WebServer(f"127.0.0.1:{server.server_port}", received)
        finally:
            server.shutdown()
            thread.join()
