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


class IdentityError(Exception):
    """No identity token can be had."""


def http_session(function_url: str) -> requests.Session:
    """An HTTP session whose requests the function at `function_url` accepts.

    Requests to this machine carry no token; all others carry one, fetched when it is first needed.

    Raises:
        IdentityError: The URL would send a token unencrypted, or no credentials were found.
    """
    if is_loopback(function_url):
        return requests.Session()
    if urlsplit(function_url).scheme != "https":
        raise IdentityError(
            f"{function_url} is no https URL: an identity token must not be sent unencrypted."
        )
    return AuthorizedSession(_identity_credentials(audience(function_url)))


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
        return f"{root}/{parts.path.split('/')[1]}"
    return root


def _identity_credentials(audience: str) -> Credentials:
    try:
        credentials, _ = google.auth.default(
            scopes=["https://www.googleapis.com/auth/cloud-platform"]
        )
        if isinstance(credentials, UserCredentials):
            raise DefaultCredentialsError("You are logged in as a person.")
        if isinstance(credentials, impersonated_credentials.Credentials):
            return impersonated_credentials.IDTokenCredentials(  # as the impersonated account
                credentials, target_audience=audience, include_email=True
            )
        # A service account's key file, or the metadata server of the machine that Dagster runs on.
        identity: Credentials = fetch_id_token_credentials(audience, request=Request())
    except DefaultCredentialsError as error:
        raise IdentityError(
            f"{error} Only a service account can get an identity token. On your own machine, "
            "log in as one: gcloud auth application-default login "
            "--impersonate-service-account=ACCOUNT_THAT_MAY_INVOKE_THE_FUNCTION"
        ) from error
    except GoogleAuthError as error:
        raise IdentityError(f"No identity token for {audience}: {error}") from error
    return identity
