"""Who Dagster is to the cloud function: identity tokens of whoever runs Dagster.

A function that is not public answers requests that carry an OpenID Connect token, issued by Google,
for an account that may invoke it and for this function as the audience:
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

from .invocation import CloudFunctionAdapter

_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]

_LOG_IN = (
    "On your own machine, log in by `gcloud auth application-default login`, set "
    "IMPERSONATE_SERVICE_ACCOUNT to the service account that may call the function, and have "
    "roles/iam.serviceAccountTokenCreator on it."
)


class IdentityError(Exception):
    """No identity token can be had."""


def find_credentials(impersonate: str | None = None) -> Credentials:
    """The Google credentials of the account that Dagster acts as.

    Those are the application default credentials:
    https://cloud.google.com/docs/authentication/application-default-credentials

    Args:
        impersonate: A service account to act as by their means: its e-mail address.

    Raises:
        IdentityError: There are none.
    """
    try:
        credentials: Credentials = google.auth.default(scopes=_SCOPES)[0]
    except DefaultCredentialsError as error:
        raise IdentityError(f"Dagster has no Google Cloud account. {_LOG_IN}") from error
    if impersonate is None:
        return credentials
    return _act_as(impersonate, credentials)


def http_session(
    function_url: str, *, audience: str | None = None, impersonate: str | None = None
) -> requests.Session:
    """An HTTP session whose requests the function at `function_url` accepts.

    Requests to this machine carry no token; all others carry one, exchanged for a new one when it
    expires, and once if it is rejected.

    Args:
        function_url: The function's URL.
        audience: Whom the tokens are for; the function's root URL unless given.
        impersonate: A service account to act as: its e-mail address.

    Raises:
        IdentityError: The URL would send a token unencrypted, or no token could be had.
    """
    if is_loopback(function_url):
        session = requests.Session()
        session.trust_env = False  # no proxy and no password of the environment's
        session.mount("http://", CloudFunctionAdapter())
        return session
    if urlsplit(function_url).scheme != "https":
        raise IdentityError(
            f"{function_url} is no https URL: an identity token must not be sent unencrypted."
        )
    audience = audience or root_url(function_url)
    source = find_credentials(impersonate)
    try:
        credentials = _id_token_credentials(source, audience)
        credentials.refresh(Request())
    except GoogleAuthError as error:
        raise IdentityError(f"No identity token for {audience} could be had: {error}") from error
    session = AuthorizedSession(credentials, max_refresh_attempts=1)
    session.mount("https://", CloudFunctionAdapter())
    return session


def explain_refusal(session: requests.Session, status: int) -> str:
    """Why a function has turned a request away, as far as its sender can tell, and what to do.

    Args:
        session: The session that the request was sent with.
        status: 401 or 403.
    """
    if not isinstance(session, AuthorizedSession):
        return (
            "The request carried no identity token, since it was sent to this machine. Call the "
            "function by its https URL."
        )
    claims = jwt.decode(session.credentials.token, verify=False)
    account = claims.get("email", claims.get("sub"))
    token = f"The request carried an identity token of {account} for {claims['aud']}"
    expiry = datetime.fromtimestamp(claims["exp"], UTC)
    if expiry < datetime.now(UTC):
        return f"{token}, which expired at {expiry}. Is this machine's clock right?"
    if status == 403:
        return f"{token}. Grant roles/run.invoker on the function to that account."
    return f"{token}. If the function is known by another URL, set FUNCTION_AUDIENCE to that."


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine.

    Args:
        url: A URL with its scheme.
    """
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def root_url(function_url: str) -> str:
    """The URL of the service that a function is, and whom a token for it is meant for.

    Functions under `cloudfunctions.net` share a host, so there it includes the function's name.

    Args:
        function_url: The function's URL.
    """
    parts = urlsplit(function_url)
    root = f"{parts.scheme}://{parts.netloc}"
    if parts.netloc.endswith(".cloudfunctions.net"):
        return f"{root}/{parts.path.strip('/').split('/')[0]}"
    return root


def _id_token_credentials(source: Credentials, audience: str) -> Credentials:
    """Credentials whose tokens say to `audience` which account they are of."""
    match source:
        case impersonated_credentials.Credentials():
            return _impersonated_id_tokens(source, audience)
        case external_account.Credentials(service_account_email=str(account)):
            # The federated identity may get the account's tokens; the account itself need not.
            unimpersonated = {**source.info, "service_account_impersonation_url": None}
            federated = type(source).from_info(unimpersonated, scopes=_SCOPES)
            return _impersonated_id_tokens(_act_as(account, federated), audience)
        case service_account.Credentials() | compute_engine.Credentials():
            found: Credentials = fetch_id_token_credentials(audience, request=Request())
            return found
    raise IdentityError(
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
        return "the account of a person"
    return f"{type(credentials).__module__}.{type(credentials).__qualname__}"
