"""Google Cloud's HTTP APIs."""

from collections.abc import Mapping
from typing import Any

import google.auth
import requests
from deployment.errors import DeploymentError
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from requests.adapters import HTTPAdapter
from urllib3 import Retry

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_TIMEOUT = 60.0  # seconds
_RETRY = Retry(
    total=3,
    backoff_factor=0.5,  # seconds, doubled each time
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,  # each request here can be made twice
    raise_on_status=False,
)

LOGIN = "gcloud auth application-default login"


class GoogleError(DeploymentError):
    """Google Cloud refused a request, or could not be reached.

    Args:
        status: The HTTP status, or None if there was no answer; kept as an attribute.
        message: What is wrong, in Google's words if there was an answer.
    """

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(message)
        self.status = status


class GoogleApi:
    """Requests to Google Cloud, answered as JSON.

    Args:
        credentials: Whose requests they are.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._session = AuthorizedSession(credentials)
        self._session.mount("https://", HTTPAdapter(max_retries=_RETRY))

    def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str | list[str]] | None = None,
        json: object = None,
        data: bytes | None = None,
    ) -> dict[str, Any]:
        """Send a request.

        Args:
            method: The HTTP method.
            url: Where to send it, without its parameters.
            params: The URL's parameters; one with a list is there once for each of its items.
            json: What to send as JSON; nothing if it is None.
            data: What to send as it is, where there is no `json`.

        Raises:
            GoogleError: It was refused, or there was no answer.
        """
        try:
            response = self._session.request(
                method, url, params=params, json=json, data=data, timeout=_TIMEOUT
            )
        except (requests.RequestException, GoogleAuthError) as error:
            raise GoogleError(None, f"{url} could not be asked: {error}") from error
        if not response.ok:
            raise GoogleError(response.status_code, _error_text(response))
        answer: dict[str, Any] = response.json()
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def find_credentials() -> Credentials:
    """The credentials of whoever is logged in on this machine.

    Raises:
        DeploymentError: Nobody is.
    """
    try:
        credentials: Credentials = google.auth.default(scopes=SCOPES)[0]
    except DefaultCredentialsError as error:
        raise DeploymentError(f"Nobody is logged in to Google Cloud: {LOGIN}") from error
    return credentials


def _error_text(response: requests.Response) -> str:
    """What Google says is wrong: `error.message` of its JSON answer."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason}"
