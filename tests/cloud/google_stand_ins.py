"""Stands in for Google's servers: those that issue tokens, and the front end of a function.

A program is led here by its environment alone: a proxy for all https, a certificate authority, the
address of a metadata server. What is asked is noted; what is issued can be told apart.
"""

import base64
import http.client
import itertools
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

FUNCTION_HOST = "people-abcdef-ew.a.run.app"
DAGSTER = "dagster@my-gcp-project.iam.gserviceaccount.com"
SERVERS = ("oauth2.googleapis.com", "iamcredentials.googleapis.com", "sts.googleapis.com")


@dataclass(frozen=True)
class Request:
    """A request to a server.

    Attributes:
        content: What it held.
        body: The same as a JSON object or a form's fields, if it is such a thing.
    """

    method: str
    host: str
    path: str
    headers: dict[str, str]
    content: bytes
    body: dict[str, Any]

    @property
    def queries(self) -> dict[str, list[str]]:
        """The parameters in its path, each with all of its values."""
        return parse_qs(urlsplit(self.path).query)

    @property
    def query(self) -> dict[str, str]:
        """The parameters in its path, each with its first value."""
        return {name: values[0] for name, values in self.queries.items()}

    @property
    def bearer(self) -> str | None:
        """The token that it carries."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass(frozen=True)
class Answer:
    """A response; its body is JSON unless it is bytes."""

    status: int
    body: object = b""
    headers: dict[str, str] = field(default_factory=dict)


Serve = Callable[[Request], Answer]


@dataclass
class Google:
    """The servers, and what they were asked.

    Attributes:
        settings: The environment that leads to them.
        asked: Each request to a server that issues tokens.
        calls: Each request to the function.
        others: More hosts, and what serves them.
        audience: Whom the function's front end takes tokens for.
        rejections: How many more tokens the front end rejects, good as they may be.
        forbidden: Whether the account that the tokens are of may not call the function.
        lifetime: For how many seconds an identity token is good.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    calls: list[Request] = field(default_factory=list)
    others: dict[str, Serve] = field(default_factory=dict)
    audience: str = f"https://{FUNCTION_HOST}"
    rejections: int = 0
    forbidden: bool = False
    lifetime: int = 3600
    front_url: str = ""
    _count: Iterator[int] = field(default_factory=itertools.count)

    def serve(self, request: Request) -> Answer:
        """Answer as the server would that the request is for."""
        if request.host in self.others:
            return self.others[request.host](request)
        if request.host == FUNCTION_HOST or request.host.startswith("127.0.0.1"):
            self.calls.append(request)
            return self._front_end(request)
        self.asked.append(request)
        match request.host, request.path.rpartition(":")[2]:
            case "oauth2.googleapis.com", _ if "refresh_token" in request.body:
                return Answer(200, {"access_token": "of-a-person", "expires_in": 3600})
            case "oauth2.googleapis.com", _:
                wanted = claims(request.body["assertion"])
                if "target_audience" in wanted:
                    return Answer(200, {"id_token": self.id_token(wanted["target_audience"])})
                return Answer(200, {"access_token": "of-an-account", "expires_in": 3600})
            case "sts.googleapis.com", _:
                answer = {"access_token": "of-a-workload", "expires_in": 3600}
                return Answer(200, {**answer, "token_type": "Bearer", "issued_token_type": "any"})
            case "iamcredentials.googleapis.com", "generateIdToken":
                return Answer(200, {"token": self.id_token(request.body["audience"])})
            case "iamcredentials.googleapis.com", "generateAccessToken":
                expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
                return Answer(200, {"accessToken": "of-an-account", "expireTime": expiry})
        return Answer(404, {"error": {"message": f"nothing at {request.host}{request.path}"}})

    def metadata(self, request: Request) -> Answer:
        """Answer as the metadata server of a machine of Google's."""
        flavor = {"Metadata-Flavor": "Google"}
        text = {**flavor, "Content-Type": "application/text"}
        if request.path == "/":
            return Answer(200, b"", text)
        self.asked.append(request)
        path = request.path.partition("?")[0]
        if path.endswith("/identity"):
            return Answer(200, self.id_token(request.query["audience"]).encode(), text)
        if path.endswith("/token"):
            return Answer(200, {"access_token": "of-a-machine", "expires_in": 3600}, flavor)
        if path.endswith("/project/project-id"):
            return Answer(200, b"my-gcp-project", text)
        return Answer(200, {"email": DAGSTER, "aliases": ["default"], "scopes": []}, flavor)

    def id_token(self, audience: str) -> str:
        """A new identity token of Dagster's account, with a signature that nobody checks."""
        content = {
            "aud": audience,
            "email": DAGSTER,
            "exp": int(time.time()) + self.lifetime,
            "iat": int(time.time()) - 60,
            "number": next(self._count),
        }
        return ".".join(map(encode, ({"alg": "RS256"}, content, "signature")))

    def _front_end(self, request: Request) -> Answer:
        """Turn away whom Google would turn away, and pass others on to the function."""
        if request.bearer is None or self.forbidden:
            return Answer(403, b"<html>Your client does not have permission</html>")
        content = claims(request.bearer)
        is_good = content["aud"] == self.audience and content["exp"] > time.time()
        if not is_good or self.rejections > 0:
            self.rejections -= 1
            description = 'Bearer error="invalid_token"'
            return Answer(401, b"<html>Unauthorized</html>", {"WWW-Authenticate": description})
        address = urlsplit((self.folder / "function_url").read_text()).netloc
        function = http.client.HTTPConnection(address, timeout=60)
        body = json.dumps(request.body)
        function.request("POST", request.path, body, {"Content-Type": "application/json"})
        answer = function.getresponse()
        content_of_answer = answer.read()
        function.close()
        return Answer(answer.status, content_of_answer)


def encode(part: object) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def claims(token: str) -> dict[str, Any]:
    """What a token says."""
    payload: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return payload


def service_account_key() -> dict[str, str]:
    """The key of Dagster's account, as a file of credentials holds it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "client_email": DAGSTER,
        "private_key": pem.decode(),
        "token_uri": "https://oauth2.googleapis.com/token",
    }


@contextmanager
def google_stand_ins(folder: Path, *hosts: str) -> Iterator[Google]:
    """Run the servers while the block runs.

    Args:
        folder: Where the function's address will be, in the file `function_url`.
        hosts: More hosts to stand in for, beside those that issue tokens.
    """
    google = Google(folder)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(FUNCTION_HOST, *SERVERS, *hosts).configure_cert(context)
    with ExitStack() as stack:
        front_port = stack.enter_context(serving(handler(google.serve)))
        tls_port = stack.enter_context(serving(handler(google.serve), context))
        metadata_port = stack.enter_context(serving(handler(google.metadata)))
        proxy_port = stack.enter_context(serving(proxy_to(tls_port)))
        google.front_url = f"http://127.0.0.1:{front_port}"
        google.settings = {
            "CLOUDSDK_CONFIG": str(folder),  # no login of whoever runs the tests
            "GCE_METADATA_HOST": f"127.0.0.1:{metadata_port}",
            "GCE_METADATA_IP": f"127.0.0.1:{metadata_port}",
            "GOOGLE_CLOUD_PROJECT": "my-gcp-project",
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy_port}",
            "REQUESTS_CA_BUNDLE": str(folder / "authority.pem"),
        }
        yield google


def handler(serve: Serve) -> type[BaseHTTPRequestHandler]:
    """Answers all requests by a function."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(
                method=self.command,
                host=self.headers["Host"],
                path=self.path,
                headers=headers,
                content=content,
                body=parse(content),
            )
            answer = serve(request)
            body = (
                answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            )
            self.send_response(answer.status)
            if not isinstance(answer.body, bytes):
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PATCH = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def parse(body: bytes) -> dict[str, Any]:
    """A body as what it holds: JSON, or a form."""
    try:
        content: dict[str, Any] = json.loads(body)
    except ValueError:
        return {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
    return content


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

        def log_message(self, *arguments: object) -> None:
            pass

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
