"""Requests to a function behind https carry an identity token for it; local ones carry none.

The function's https front end, the way there and the token endpoint stand in for Google's. The
project is led to them by its environment alone: a proxy, a certificate authority, an account's key.
"""

import base64
import http.client
import json
import re
import select
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from conftest import run
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

HOST = "people-abcdef-ew.a.run.app"
EXPIRY = int(time.time()) + 3600

SCRIPT = """
import json, os, sys
from pathlib import Path
from local_cloud.cloud import local_cloud
from local_cloud.materialize import materialize

folder, front_url, settings_of_google = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
with local_cloud(folder / "lake") as settings:
    (folder / "function_url").write_text(settings["FUNCTION_URL"])
    os.environ.update({**settings_of_google, **settings, "FUNCTION_URL": front_url})
    report = materialize("my_data_platform")
print("REPORT", json.dumps(report))
"""


@dataclass
class Google:
    """What stands in for Google's servers, and what they were asked.

    Attributes:
        folder: Where the certificates, the key, and the function's local address are.
        front_url: The plain http address of the front end.
        settings: The environment that leads to the stand-ins.
        authorizations: The `Authorization` of each request to the function.
        audiences: Whom each token was asked for.
        traces: The trace context and the execution id of each request to the function.
    """

    folder: Path
    front_url: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    authorizations: list[str | None] = field(default_factory=list)
    audiences: list[str] = field(default_factory=list)
    traces: list[tuple[str, str]] = field(default_factory=list)


def encode(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def token_for(audience: str) -> str:
    claims = {"aud": audience, "exp": EXPIRY}
    return f"{encode({'alg': 'RS256'})}.{encode(claims)}.{encode('signature')}"


def front_end(google: Google) -> type[BaseHTTPRequestHandler]:
    """Notes who asks, and passes the request on to the function."""

    class FrontEnd(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            google.authorizations.append(self.headers["Authorization"])
            google.traces.append(
                (self.headers["traceparent"], self.headers["Function-Execution-Id"])
            )
            body = self.rfile.read(int(self.headers["Content-Length"]))
            address = urlsplit((google.folder / "function_url").read_text()).netloc
            function = http.client.HTTPConnection(address, timeout=60)
            function.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = function.getresponse()
            text = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            function.close()

    return FrontEnd


def token_endpoint(google: Google) -> type[BaseHTTPRequestHandler]:
    """Exchanges a service account's assertion for an identity token, as RFC 7523 says."""

    class TokenEndpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            payload = form["assertion"][0].split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
            google.audiences.append(claims["target_audience"])
            text = json.dumps({"id_token": token_for(claims["target_audience"])}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return TokenEndpoint


def proxy_to(port: int) -> type[BaseHTTPRequestHandler]:
    """Takes every connection, wherever it wants to go, to `port` of this machine."""

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            with socket.create_connection(("127.0.0.1", port)) as there:
                ends = {self.connection: there, there: self.connection}
                while True:
                    for end in select.select(list(ends), [], [], 60)[0]:
                        data = end.recv(65536)
                        if not data:
                            self.close_connection = True
                            return
                        ends[end].sendall(data)

    return Proxy


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Serve on a free port while the block runs, over TLS if there is a context."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def service_account_key(token_port: int) -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "client_email": "dagster@my-gcp-project.iam.gserviceaccount.com",
        "private_key": pem.decode(),
        "token_uri": f"http://127.0.0.1:{token_port}/token",
    }


@pytest.fixture
def google(tmp_path: Path) -> Iterator[Google]:
    """Stand-ins for the function's front end, the token endpoint, and the network between."""
    google = Google(tmp_path)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with (
        serving(front_end(google)) as front_port,
        serving(front_end(google), context) as tls_port,
        serving(token_endpoint(google)) as token_port,
        serving(proxy_to(tls_port)) as proxy_port,
    ):
        key = tmp_path / "key.json"
        key.write_text(json.dumps(service_account_key(token_port)))
        google.front_url = f"http://127.0.0.1:{front_port}"
        google.settings = {
            "GOOGLE_APPLICATION_CREDENTIALS": str(key),
            "GOOGLE_CLOUD_PROJECT": "my-gcp-project",
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy_port}",
            "REQUESTS_CA_BUNDLE": str(tmp_path / "authority.pem"),
        }
        yield google


def materialize(project: Path, google: Google, function_url: str) -> dict[str, Any]:
    """Materialize the project's assets, with the function at `function_url`."""
    script = google.folder / "script.py"
    script.write_text(SCRIPT)
    printed = run(
        *("uv", "run", "python", str(script), str(google.folder), function_url),
        json.dumps(google.settings),
        cwd=project / "orchestrator",
    ).stdout
    [report] = (line for line in printed.splitlines() if line.startswith("REPORT "))
    result: dict[str, Any] = json.loads(report.removeprefix("REPORT "))
    return result


def test_a_request_to_https_carries_a_token_for_the_function(project: Path, google: Google) -> None:
    report = materialize(project, google, f"https://{HOST}/")

    assert report["errors"] == []
    assert "people" in report["assets"]
    assert google.audiences == [f"https://{HOST}"]
    assert google.authorizations == [f"Bearer {token_for(f'https://{HOST}')}"]


def test_the_logs_of_a_call_can_be_found(project: Path, google: Google) -> None:
    metadata = materialize(project, google, f"https://{HOST}/")["assets"]["people"]["metadata"]

    [(trace_context, execution_id)] = google.traces
    assert str(uuid.UUID(execution_id)) == execution_id  # the id of the run
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace_context)
    trace = trace_context.split("-")[1]
    assert metadata["cloud_function_trace"] == trace
    assert metadata["cloud_function_logs"] == (
        "https://console.cloud.google.com/logs/query;query=trace%3D%22projects%2Fmy-gcp-project"
        f"%2Ftraces%2F{trace}%22?project=my-gcp-project"
    )


def test_a_request_to_this_machine_carries_no_token(project: Path, google: Google) -> None:
    report = materialize(project, google, google.front_url)

    assert report["errors"] == []
    assert google.audiences == []
    assert google.authorizations == [None]
