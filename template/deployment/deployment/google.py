"""A client for the HTTP APIs of Google Cloud."""

from collections.abc import Mapping, Sequence
from typing import Any

import google.auth
import requests
from deployment.errors import DeploymentError
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.auth.transport.requests import AuthorizedSession
from requests.adapters import HTTPAdapter
from urllib3 import Retry

SCOPES = [
    "https://www.googleapis.com/auth/cloud-platform",
    "https://www.googleapis.com/auth/userinfo.email",  # some services know accounts by it
]
_TIMEOUT = 60.0  # seconds

LOGIN = "gcloud auth application-default login"


class GoogleError(DeploymentError):
    """Google Cloud rejected a request, or could not be reached.

    Args:
        status: The HTTP status of the response, or None without a response.
        message: The error: Google's own message if there was a response.
        was_retried: Whether an earlier attempt of the same request failed, but may have had an
            effect.

    Attributes:
        status: As above.
        was_retried: As above.
    """

    def __init__(self, status: int | None, message: str, *, was_retried: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.was_retried = was_retried

    @property
    def is_transient(self) -> bool:
        """True if the same request may succeed later."""
        return self.status is None or self.status == 429 or self.status >= 500


class GoogleApi:
    """A client for JSON APIs of Google Cloud. It retries a failed request three times.

    Args:
        credentials: The credentials to send requests with.
        backoff: The wait before the second retry, in seconds. It doubles each time.
    """

    def __init__(self, credentials: Credentials, backoff: float = 1.0) -> None:
        retry = Retry(
            total=3,
            backoff_factor=backoff / 2,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,  # all requests here are safe to repeat
            raise_on_status=False,
        )
        self._session = AuthorizedSession(credentials)
        self._session.mount("https://", HTTPAdapter(max_retries=retry))

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
        except RefreshError as error:
            status = None if error.retryable else 401
            raise GoogleError(status, f"Google issues no credentials: {error}") from error
        except (requests.RequestException, GoogleAuthError) as error:
            raise GoogleError(None, f"Could not reach {url}: {error}") from error
        if not response.ok:
            raise GoogleError(
                response.status_code, _error_text(response), was_retried=_was_retried(response)
            )
        try:
            result: dict[str, Any] = response.json()
        except ValueError as error:
            raise GoogleError(
                response.status_code, f"The response of {url} is no JSON. Is there a proxy?"
            ) from error
        return result

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def find_project(api: GoogleApi, project: str) -> dict[str, Any]:
    """A project, as Resource Manager describes it.

    Args:
        api: Sends the request.
        project: The ID of the project.

    Raises:
        GoogleError: The request failed. The status is 403 also for a project that does not exist.
    """
    url = f"https://cloudresourcemanager.googleapis.com/v1/projects/{project}"
    return api.request("GET", url)


def find_bucket(api: GoogleApi, name: str) -> dict[str, Any]:
    """A bucket, as Cloud Storage describes it.

    Args:
        api: Sends the request.
        name: The name of the bucket.

    Raises:
        GoogleError: The request failed. The status is 404 for a bucket that does not exist.
    """
    return api.request("GET", f"https://storage.googleapis.com/storage/v1/b/{name}")


def disabled_apis(api: GoogleApi, parent: str, names: Sequence[str]) -> list[str]:
    """The APIs that are not enabled.

    Args:
        api: Sends the request.
        parent: `projects/` and the ID or the number of the project.
        names: The names of APIs, such as `run.googleapis.com`.

    Raises:
        GoogleError: The request failed.
    """
    found = api.request(
        "GET",
        f"https://serviceusage.googleapis.com/v1/{parent}/services:batchGet",
        params={"names": [f"{parent}/services/{name}" for name in names]},
    )
    enabled = {
        service["config"]["name"]
        for service in found.get("services", [])
        if service.get("state") == "ENABLED"
    }
    return [name for name in names if name not in enabled]


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


def _was_retried(response: requests.Response) -> bool:
    """True if an attempt before this response failed, other than by a limit to requests."""
    retries = response.raw.retries
    return retries is not None and any(attempt.status != 429 for attempt in retries.history)


def _error_text(response: requests.Response) -> str:
    """The `error.message` in a JSON response, or the status."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason}"
