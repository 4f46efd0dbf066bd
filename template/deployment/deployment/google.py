"""A client for the HTTP APIs of Google Cloud."""

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
    allowed_methods=None,  # all requests here are safe to repeat
    raise_on_status=False,
)

LOGIN = "gcloud auth application-default login"


class GoogleError(DeploymentError):
    """Google Cloud rejected a request, or could not be reached.

    Args:
        status: The HTTP status of the response, or None without a response. Also an attribute.
        message: The error: Google's own message if there was a response.
    """

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(message)
        self.status = status


class GoogleApi:
    """A client for JSON APIs of Google Cloud.

    Args:
        credentials: The credentials to send requests with.
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
        """Send a request, and return the JSON object in the response.

        Args:
            method: The HTTP method.
            url: The URL without query parameters.
            params: The query parameters. A list repeats its parameter.
            json: The body, to be encoded as JSON.
            data: The body as bytes, instead of `json`.

        Raises:
            GoogleError: The request was rejected, or there was no response.
        """
        try:
            response = self._session.request(
                method, url, params=params, json=json, data=data, timeout=_TIMEOUT
            )
        except (requests.RequestException, GoogleAuthError) as error:
            raise GoogleError(None, f"Could not reach {url}: {error}") from error
        if not response.ok:
            raise GoogleError(response.status_code, _error_text(response))
        result: dict[str, Any] = response.json()
        return result

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def find_credentials() -> Credentials:
    """The application default credentials of this machine.

    Raises:
        DeploymentError: There are none.
    """
    try:
        credentials: Credentials = google.auth.default(scopes=SCOPES)[0]
    except DefaultCredentialsError as error:
        raise DeploymentError(f"You are not logged in to Google Cloud. Run: {LOGIN}") from error
    return credentials


def _error_text(response: requests.Response) -> str:
    """The `error.message` in a JSON response, or the status."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason}"
