"""The credentials of Dagster, and identity tokens for the cloud function.

A function that is not public requires an OpenID Connect token, issued by Google for an account that
may invoke the function, with the function as its audience:
https://cloud.google.com/run/docs/authenticating/service-to-service
"""

from datetime import UTC, datetime
from urllib.parse import urlsplit

import google.auth
import requests
from google.auth import compute_engine, external_account, impersonated_credentials, jwt
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import credentials as user
from google.oauth2 import service_account
from google.oauth2.id_token import fetch_id_token_credentials

from gcp_pipes.orchestrator.http import CloudFunctionAdapter
from gcp_pipes.orchestrator.urls import is_loopback, root_url

_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]

_LOG_IN = (
    "On your own machine, log in with `gcloud auth application-default login`, and set "
    "IMPERSONATE_SERVICE_ACCOUNT to the service account that may call the function. You need "
    "roles/iam.serviceAccountTokenCreator on it."
)


class CredentialsError(Exception):
    """There are no credentials, or they give no identity token."""


def find_credentials(impersonate: str | None = None) -> Credentials:
    """The Google credentials of the account that Dagster acts as.

    Those are the application default credentials:
    https://cloud.google.com/docs/authentication/application-default-credentials

    Args:
        impersonate: The e-mail address of a service account to act as.

    Raises:
        CredentialsError: There are no credentials.
    """
    try:
        credentials: Credentials = google.auth.default(scopes=_SCOPES)[0]
    except DefaultCredentialsError as error:
        raise CredentialsError(f"Dagster has no Google Cloud credentials. {_LOG_IN}") from error
    if impersonate is None:
        return credentials
    return _act_as(impersonate, credentials)


def http_session(
    function_url: str, *, audience: str | None = None, impersonate: str | None = None
) -> requests.Session:
    """An HTTP session for the function at `function_url`.

    Requests to this machine carry no token. All others carry one, which is refreshed when it
    expires, and once if it is rejected.

    Args:
        function_url: The function's URL.
        audience: The audience of the tokens. The default is the function's root URL.
        impersonate: The e-mail address of a service account to act as.

    Raises:
        CredentialsError: The token would be sent unencrypted, or there is none.
    """
    if is_loopback(function_url):
        session = requests.Session()
        session.trust_env = False  # no proxy and no password from the environment
        session.mount("http://", CloudFunctionAdapter())
        return session
    if urlsplit(function_url).scheme != "https":
        raise CredentialsError(
            f"{function_url} is no https URL: an identity token must not be sent unencrypted."
        )
    audience = audience or root_url(function_url)
    source = find_credentials(impersonate)
    try:
        credentials = _id_token_credentials(source, audience)
        credentials.refresh(Request())
    except GoogleAuthError as error:
        raise CredentialsError(
            f"Could not get an identity token for {audience}: {error}"
        ) from error
    session = AuthorizedSession(credentials, max_refresh_attempts=1)
    session.mount("https://", CloudFunctionAdapter())
    return session


def explain_auth_error(session: requests.Session, status: int) -> str:
    """Why a function may have rejected the credentials of a request, and what to do."""
    if not isinstance(session, AuthorizedSession):
        return (
            "The request had no identity token, since it was sent to this machine. Call the "
            "function by its https URL."
        )
    claims = jwt.decode(session.credentials.token, verify=False)
    account = claims.get("email", claims.get("sub"))
    token = f"The request had an identity token of {account} for {claims['aud']}"
    expiry = datetime.fromtimestamp(claims["exp"], UTC)
    if expiry < datetime.now(UTC):
        return f"{token}, which expired at {expiry}. Check this machine's clock."
    if status == 403:
        return f"{token}. Grant roles/run.invoker on the function to that account."
    return f"{token}. If the function has another audience, set FUNCTION_AUDIENCE to it."


def _id_token_credentials(source: Credentials, audience: str) -> Credentials:
    """Credentials that give identity tokens for `audience`."""
    match source:
        case impersonated_credentials.Credentials():
            return _impersonated_id_tokens(source, audience)
        case external_account.Credentials(service_account_email=str(account)):
            # The federated identity may create the account's tokens; the account itself need not.
            unimpersonated = {**source.info, "service_account_impersonation_url": None}
            federated = type(source).from_info(unimpersonated, scopes=_SCOPES)
            return _impersonated_id_tokens(_act_as(account, federated), audience)
        case service_account.Credentials() | compute_engine.Credentials():
            found: Credentials = fetch_id_token_credentials(audience, request=Request())
            return found
    raise CredentialsError(
        "Only a service account can get an identity token, and Dagster has "
        f"{_describe(source)}. {_LOG_IN}"
    )


def _act_as(account: str, source: Credentials) -> impersonated_credentials.Credentials:
    return impersonated_credentials.Credentials(source, account, _SCOPES, delegates=[])


def _impersonated_id_tokens(
    target: impersonated_credentials.Credentials, audience: str
) -> Credentials:
    return impersonated_credentials.IDTokenCredentials(
        target, target_audience=audience, include_email=True
    )


def _describe(credentials: Credentials) -> str:
    if isinstance(credentials, user.Credentials):
        return "a person's account"
    return f"{type(credentials).__module__}.{type(credentials).__qualname__}"
