"""Which requests carry an identity token, and whom the token is for."""

import base64
import json
import time
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.transport.requests import AuthorizedSession, Request
from web_server import web_server

from gcp_pipes.orchestrator.auth import http_session


def jwt(claims: dict[str, object]) -> str:
    """A token with these claims, and a signature that is not checked."""
    parts = ({"alg": "RS256"}, claims, "signature")
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts)
    return ".".join(part.rstrip("=") for part in encoded)


def claims(token: str) -> dict[str, object]:
    """What a token says."""
    encoded = token.split(".")[1]
    decoded: dict[str, object] = json.loads(base64.urlsafe_b64decode(encoded + "=="))
    return decoded


def log_in(monkeypatch: pytest.MonkeyPatch, folder: Path, credentials: dict[str, str]) -> None:
    """Make `credentials` the application default credentials."""
    file = folder / "credentials.json"
    file.write_text(json.dumps(credentials))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))


def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_request_to_this_machine_carries_no_token(scheme: str, host: str) -> None:
    assert not isinstance(http_session(f"{scheme}://{host}/"), AuthorizedSession)


def test_a_request_to_https_carries_a_token_for_the_function(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    token = jwt({"exp": int(time.time()) + 3600, "aud": "a-function"})
    with web_server((200, json.dumps({"id_token": token}).encode())) as server:
        log_in(
            monkeypatch,
            tmp_path,
            {
                "type": "service_account",
                "client_email": "dagster@a-project.iam.gserviceaccount.com",
                "private_key": private_key(),
                "token_uri": f"http://{server.address}/token",
            },
        )
        session = http_session("https://a-function-xyz.a.run.app/path")
        assert isinstance(session, AuthorizedSession)
        headers: dict[str, str] = {}
        session.credentials.before_request(Request(), "POST", "https://any", headers)

    assert headers["authorization"] == f"Bearer {token}"
    [assertion] = parse_qs(server.received[0].decode())["assertion"]
    assert claims(assertion)["target_audience"] == "https://a-function-xyz.a.run.app"


def test_an_error_tells_a_person_to_impersonate_a_service_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    person = {"client_id": "c", "client_secret": "s", "refresh_token": "r"}
    log_in(monkeypatch, tmp_path, {"type": "authorized_user", **person})

    with pytest.raises(Exception, match="a person's account"):
        http_session("https://a-function-xyz.a.run.app")


def test_no_token_is_sent_unencrypted() -> None:
    with pytest.raises(Exception, match="must not be sent unencrypted"):
        http_session("http://a-function-xyz.a.run.app")
