"""The orchestrator's settings, from its environment. `.env.example` shows them all."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import urlsplit

import dagster as dg

from gcp_pipes.orchestrator.urls import is_loopback

_LONGEST_TIMEOUT = "3600"  # seconds: no function of Google Cloud may take more


class SettingsError(dg.Failure):
    """An environment variable is missing or malformed.

    Args:
        variable: Its name.
        problem: What is wrong with it: the rest of a sentence that begins with the name.
    """

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(
            f"{variable} {problem} Set it in orchestrator/.env (orchestrator/.env.example shows "
            "how), or in the environment that Dagster runs in.",
            allow_retries=False,
        )


@dataclass(frozen=True)
class Settings:
    """Where the cloud function and its buckets are.

    Attributes:
        function_url: The cloud function's URL.
        lake_uri: The data lake: `gs://bucket`, or the absolute path of a local folder.
        messages_bucket: Name of the bucket that brings messages from the function to Dagster.
        function_timeout: The function's own timeout, in seconds.
        function_audience: Whom identity tokens for the function are for; None for its root URL.
        impersonate_service_account: The service account to act as, its e-mail address; None to act
            as the account that Dagster runs as.
    """

    function_url: str
    lake_uri: str
    messages_bucket: str
    function_timeout: float
    function_audience: str | None
    impersonate_service_account: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read `FUNCTION_URL`, `LAKE_URI` and `MESSAGES_BUCKET`, and what else is set.

        That may be `FUNCTION_TIMEOUT`, `FUNCTION_AUDIENCE` and `IMPERSONATE_SERVICE_ACCOUNT`.

        Args:
            environment: Environment variables and their values; those of this process unless given.

        Raises:
            SettingsError: One of them is malformed, or one of the first three is missing.
        """
        return cls(
            function_url=_function_url(environment),
            lake_uri=_lake_uri(environment),
            messages_bucket=_messages_bucket(environment),
            function_timeout=_function_timeout(environment),
            function_audience=_optional(environment, "FUNCTION_AUDIENCE"),
            impersonate_service_account=_impersonate_service_account(environment),
        )


def _function_url(environment: Mapping[str, str]) -> str:
    url = _required(environment, "FUNCTION_URL")
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and is_loopback(url)
    if not (parts.hostname and (parts.scheme == "https" or is_local)):
        raise SettingsError(
            "FUNCTION_URL",
            f"must be an https URL, or an http URL of this machine; it is {url!r}.",
        )
    return url


def _lake_uri(environment: Mapping[str, str]) -> str:
    uri = _required(environment, "LAKE_URI")
    if not (re.match(r"gs://[a-z0-9]", uri) or PurePath(uri).is_absolute()):
        raise SettingsError("LAKE_URI", f"must be gs://BUCKET, or an absolute path; it is {uri!r}.")
    return uri


def _messages_bucket(environment: Mapping[str, str]) -> str:
    bucket = _required(environment, "MESSAGES_BUCKET")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+[a-z0-9]", bucket):
        raise SettingsError(
            "MESSAGES_BUCKET",
            f"must be the name of a bucket, without gs:// and slashes; it is {bucket!r}.",
        )
    return bucket


def _function_timeout(environment: Mapping[str, str]) -> float:
    text = _optional(environment, "FUNCTION_TIMEOUT") or _LONGEST_TIMEOUT
    if not re.fullmatch(r"[0-9]+", text) or not 0 < int(text) <= int(_LONGEST_TIMEOUT):
        raise SettingsError(
            "FUNCTION_TIMEOUT",
            f"must be the function's timeout in seconds, up to {_LONGEST_TIMEOUT}; it is {text!r}.",
        )
    return float(text)


def _impersonate_service_account(environment: Mapping[str, str]) -> str | None:
    account = _optional(environment, "IMPERSONATE_SERVICE_ACCOUNT")
    if account is not None and not re.fullmatch(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com", account):
        raise SettingsError(
            "IMPERSONATE_SERVICE_ACCOUNT",
            f"must be the e-mail address of a service account; it is {account!r}.",
        )
    return account


def _required(environment: Mapping[str, str], variable: str) -> str:
    value = _optional(environment, variable)
    if value is None:
        raise SettingsError(variable, "is not set.")
    return value


def _optional(environment: Mapping[str, str], variable: str) -> str | None:
    return environment.get(variable, "").strip() or None
