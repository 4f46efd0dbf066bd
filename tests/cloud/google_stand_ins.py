"""Replaces Google's servers: those that issue tokens, and the front end of a function.

Environment variables make a program use these servers: an https proxy, a certificate authority, and
the address of a metadata server. The requests are recorded, and each token is different.
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
from collections.abc import Callable, Iterator, Mapping
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
        content: The body.
        body: The body parsed as a JSON object, or as the fields of a form.
    """

    method: str
    host: str
    path: str
    headers: dict[str, str]
    content: bytes
    body: dict[str, Any]

    @property
    def queries(self) -> dict[str, list[str]]:
        """The query parameters, each with all values."""
        return parse_qs(urlsplit(self.path).query)

    @property
    def query(self) -> dict[str, str]:
        """The query parameters, each with its first value."""
        return {name: values[0] for name, values in self.queries.items()}

    @property
    def bearer(self) -> str | None:
        """The bearer token."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass(frozen=True)
class Response:
    """A response. The body is encoded as JSON unless it is bytes."""

    status: int
    body: object = b""
    headers: dict[str, str] = field(default_factory=dict)


DROPPED = Response(0)  # the connection is closed without a response

Serve = Callable[[Request], Response]


@dataclass
class Google:
    """The servers, and the requests that they received.

    Attributes:
        settings: The environment variables that make a program use the servers.
        token_requests: All requests to servers that issue tokens.
        calls: All requests to the function.
        hosts: More hosts, and the function that serves each.
        audience: The audience that the function's front end requires.
        rejections: How many more valid tokens the front end rejects.
        forbidden: How many more valid tokens are of an account that may not call the function.
        lifetime: The lifetime of an identity token in seconds.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    token_requests: list[Request] = field(default_factory=list)
    calls: list[Request] = field(default_factory=list)
    hosts: dict[str, Serve] = field(default_factory=dict)
    audience: str = f"https://{FUNCTION_HOST}"
    rejections: int = 0
    forbidden: int = 0
    lifetime: int = 3600
    front_url: str = ""
    _count: Iterator[int] = field(default_factory=itertools.count)

    def serve(self, request: Request) -> Response:
        """Respond as the host of the request would."""
        if request.host in self.hosts:
            return self.hosts[request.host](request)
        if request.host == FUNCTION_HOST or request.host.startswith("127.0.0.1"):
            self.calls.append(request)
            return self._front_end(request)
        return self.issue_token(request)

    def issue_token(self, request: Request) -> Response:
        """Respond as the servers that issue tokens would."""
        self.token_requests.append(request)
        match request.host, request.path.rpartition(":")[2]:
            case "oauth2.googleapis.com", _ if "refresh_token" in request.body:
                return Response(200, {"access_token": "of-a-person", "expires_in": 3600})
            case "oauth2.googleapis.com", _:
                wanted = claims(request.body["assertion"])
                if "target_audience" in wanted:
                    return Response(200, {"id_token": self.id_token(wanted["target_audience"])})
                return Response(200, {"access_token": "of-an-account", "expires_in": 3600})
            case "sts.googleapis.com", _:
                token = {"access_token": "of-a-workload", "expires_in": 3600}
                return Response(200, {**token, "token_type": "Bearer", "issued_token_type": "any"})
            case "iamcredentials.googleapis.com", "generateIdToken":
                return Response(200, {"token": self.id_token(request.body["audience"])})
            case "iamcredentials.googleapis.com", "generateAccessToken":
                expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
                return Response(200, {"accessToken": "of-an-account", "expireTime": expiry})
        return Response(404, {"error": {"message": f"nothing at {request.host}{request.path}"}})

    def metadata(self, request: Request) -> Response:
        """Respond as the metadata server of a machine in Google Cloud."""
        flavor = {"Metadata-Flavor": "Google"}
        text = {**flavor, "Content-Type": "application/text"}
        if request.path == "/":
            return Response(200, b"", text)
        self.token_requests.append(request)
        path = request.path.partition("?")[0]
        if path.endswith("/identity"):
            return Response(200, self.id_token(request.query["audience"]).encode(), text)
        if path.endswith("/token"):
            return Response(200, {"access_token": "of-a-machine", "expires_in": 3600}, flavor)
        if path.endswith("/project/project-id"):
            return Response(200, b"my-gcp-project", text)
        return Response(200, {"email": DAGSTER, "aliases": ["default"], "scopes": []}, flavor)

    def id_token(self, audience: str) -> str:
        """A new identity token of Dagster's account, with an invalid signature."""
        content = {
            "aud": audience,
            "email": DAGSTER,
            "exp": int(time.time()) + self.lifetime,
            "iat": int(time.time()) - 60,
            "number": next(self._count),
        }
        return ".".join(map(encode, ({"alg": "RS256"}, content, "signature")))

    def _front_end(self, request: Request) -> Response:
        """Reject requests as Google would, and forward the others to the function."""
        is_forbidden = request.bearer is not None and self.forbidden > 0
        self.forbidden -= is_forbidden
        if request.bearer is None or is_forbidden:
            return Response(403, b"<html>Your client does not have permission</html>")
        token = claims(request.bearer)
        is_valid = token["aud"] == self.audience and token["exp"] > time.time()
        if not is_valid or self.rejections > 0:
            self.rejections -= 1
            description = 'Bearer error="invalid_token"'
            return Response(401, b"<html>Unauthorized</html>", {"WWW-Authenticate": description})
        address = urlsplit((self.folder / "function_url").read_text()).netloc
        function = http.client.HTTPConnection(address, timeout=60)
        body = json.dumps(request.body)
        function.request("POST", request.path, body, {"Content-Type": "application/json"})
        response = function.getresponse()
        content = response.read()
        function.close()
        return Response(response.status, content)


def encode(part: object) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def claims(token: str) -> dict[str, Any]:
    """The claims in a token."""
    payload: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return payload


def service_account_key() -> dict[str, str]:
    """A credentials file with a key of Dagster's account."""
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
    """Run the servers during the block.

    Args:
        folder: The folder with the file `function_url`, which contains the function's URL.
        hosts: More hosts to replace, in addition to those that issue tokens.
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
            "CLOUDSDK_CONFIG": str(folder),  # ignore the login of the developer
            "GCE_METADATA_HOST": f"127.0.0.1:{metadata_port}",
            "GCE_METADATA_IP": f"127.0.0.1:{metadata_port}",
            "GOOGLE_CLOUD_PROJECT": "my-gcp-project",
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy_port}",
            "REQUESTS_CA_BUNDLE": str(folder / "authority.pem"),
        }
        yield google


@contextmanager
def google_for_a_person(folder: Path, hosts: Mapping[str, Serve]) -> Iterator[Google]:
    """Run the servers during the block, for a person who deploys, with a key.

    Args:
        folder: As for `google_stand_ins`. The key is stored there, too.
        hosts: The other servers, by host.
    """
    with google_stand_ins(folder, *hosts) as google:
        google.hosts = dict(hosts)
        (folder / "key.json").write_text(json.dumps(service_account_key()))
        google.settings |= {
            "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "key.json"),
            "CI": "",  # a person deploys
            "UV_OFFLINE": "true",  # the proxy has no packages
        }
        yield google


def handler(serve: Serve) -> type[BaseHTTPRequestHandler]:
    """A request handler that calls a function."""

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
            response = serve(request)
            if response is DROPPED:
                self.close_connection = True
                return
            body = response.body
            self.send_response(response.status)
            if not isinstance(body, bytes):
                body = json.dumps(body).encode()
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def parse(body: bytes) -> dict[str, Any]:
    """Parse a body as JSON, or else as a form."""
    try:
        content: dict[str, Any] = json.loads(body)
    except ValueError:
        return {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
    return content


def proxy_to(port: int) -> type[BaseHTTPRequestHandler]:
    """A proxy that connects every client to `port` of this machine, whatever the host."""

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
    """Serve on a free port during the block, over TLS if there is a context."""
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
