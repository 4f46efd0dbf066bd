"""Canaries: they fail if urllib3 changes a part that has no public name.

Then look for the part in its sources, and correct `gcp_pipes/orchestrator/urllib3_internals.py`.
"""

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
import requests
from urllib3 import HTTPConnectionPool

from gcp_pipes.orchestrator.auth import http_session
from gcp_pipes.orchestrator.urllib3_internals import interruptible


@pytest.fixture
def ports() -> Iterator[tuple[str, list[int]]]:
    """The URL of a server, and the client's port of each request: one for each connection."""
    ports: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            ports.append(self.client_address[1])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", ports
        server.shutdown()


def post(session: requests.Session, url: str) -> None:
    assert session.post(url, timeout=5).ok


def test_a_connection_is_reused_unless_it_has_been_idle(ports: tuple[str, list[int]]) -> None:
    url, used = ports
    with http_session(url) as session:
        post(session, url)
        post(session, url)
        time.sleep(1.1)
        post(session, url)

    first, second, third = used
    assert first == second != third


def test_a_request_is_interrupted_by_another_thread() -> None:
    has_ended = Event()

    def interrupt_until_it_ends() -> None:
        while not has_ended.wait(0.1):
            interrupt()

    with (
        socket.create_server(("127.0.0.1", 0)) as server,  # it accepts, and never responds
        http_session("http://127.0.0.1") as session,
        interruptible() as interrupt,
    ):
        interrupting = Thread(target=interrupt_until_it_ends)
        interrupting.start()
        with pytest.raises(requests.ConnectionError):
            session.post(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=60)
        has_ended.set()
        interrupting.join()

    interrupt()  # no effect: the request has ended


def test_a_later_request_of_the_thread_is_not_interrupted() -> None:
    def respond(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            for act in (str, interrupt):
                connection.recv(65_536)
                act()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        http_session("http://127.0.0.1") as session,
    ):
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with interruptible() as interrupt:
            responding = Thread(target=respond, args=[server])
            responding.start()
            post(session, url)
        post(session, url)
        responding.join()


def test_the_overridden_methods_are_those_of_urllib3() -> None:
    assert {"_get_conn", "_put_conn"} <= vars(HTTPConnectionPool).keys()
