"""Who Dagster is to the cloud function: identity tokens of whoever runs Dagster.

A function that is not public answers requests that carry an OpenID Connect token, issued by Google,
for an account that may invoke it and for this function as the audience:
https://cloud.google.com/run/docs/authenticating/service-to-service
"""

from urllib.parse import urlsplit

import google.auth
import requests
from google.auth import impersonated_credentials
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2.credentials import Credentials as UserCredentials
from google.oauth2.id_token import fetch_id_token_credentials

from .invocation import KeepAliveAdapter


class IdentityError(Exception):
    """No identity token can be had."""


def http_session(function_url: str) -> requests.Session:
    """An HTTP session whose requests the function at `function_url` accepts.

    Requests to this machine carry no token; all others carry one, exchanged for a new one when it
    expires.

    Raises:
        IdentityError: The URL would send a token unencrypted, or no token could be had.
    """
    if is_loopback(function_url):
        session = requests.Session()
        session.trust_env = False  # no proxy and no password of the environment's
        session.mount("http://", KeepAliveAdapter())
        return session
    if urlsplit(function_url).scheme != "https":
        raise IdentityError(
            f"{function_url} is no https URL: an identity token must not be sent unencrypted."
        )
    session = AuthorizedSession(_identity_credentials(audience(function_url)))
    session.mount("https://", KeepAliveAdapter())
    return session


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def audience(function_url: str) -> str:
    """Whom a token for `function_url` is meant for.

    That is the service's root URL. Functions under `cloudfunctions.net` share a host, so there it
    includes the function's name.
    """
    parts = urlsplit(function_url)
    root = f"{parts.scheme}://{parts.netloc}"
    if parts.netloc.endswith(".cloudfunctions.net"):
        return f"{root}/{parts.path.strip('/').split('/')[0]}"
    return root


def _identity_credentials(audience: str) -> Credentials:
    """Credentials with a fresh token for `audience`, for the account that Dagster runs as."""
    try:
        credentials = _find_credentials(audience)
        credentials.refresh(Request())
    except DefaultCredentialsError as error:
        raise IdentityError(
            f"{error} Only a service account can get an identity token. On your own machine, "
            "log in as one: gcloud auth application-default login "
            "--impersonate-service-account=ACCOUNT_THAT_MAY_INVOKE_THE_FUNCTION"
        ) from error
    except GoogleAuthError as error:
        raise IdentityError(f"No identity token for {audience} could be had: {error}") from error
    return credentials


def _find_credentials(audience: str) -> Credentials:
    source, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    if isinstance(source, UserCredentials):
        raise DefaultCredentialsError("You are logged in as a person.")
    if isinstance(source, impersonated_credentials.Credentials):
        return impersonated_credentials.IDTokenCredentials(
            source, target_audience=audience, include_email=True
        )
    # The key file of a service account, or the metadata server of the machine that Dagster runs on.
    found: Credentials = fetch_id_token_credentials(audience, request=Request())
    return found
