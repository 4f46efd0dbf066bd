"""Settings from the environment variables of Dagster. `.env.example` has all of them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import urlsplit

import dagster as dg

from gcp_pipes.orchestrator.urls import is_loopback

_LONGEST_TIMEOUT = 3600  # seconds: the limit of Google Cloud


class SettingsError(dg.Failure):
    """An environment variable is missing or malformed.

    Args:
        variable: The name of the variable.
        problem: What is wrong with it, as the rest of a sentence that begins with the name.
    """

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(
            f"{variable} {problem} Set it in orchestrator/.env (orchestrator/.env.example shows "
            "how), or in the environment of Dagster.",
            allow_retries=False,
        )


@dataclass(frozen=True)
class Settings:
    """The cloud function, its buckets, and how to call it.

    Attributes:
        function_url: The function's URL.
        lake_uri: The data lake: `gs://bucket`, or the absolute path of a local folder.
        messages_bucket: The name of the bucket through which the function sends messages.
        function_timeout: The function's own timeout, in seconds.
        function_audience: The audience of identity tokens; None for the function's root URL.
        impersonate_service_account: The e-mail address of a service account to call the function
            as; None for the account that Dagster runs as.
    """

    function_url: str
    lake_uri: str
    messages_bucket: str
    function_timeout: float
    function_audience: str | None
    impersonate_service_account: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read each setting from the variable with its name in capitals.

        The variables without a default are `FUNCTION_URL`, `LAKE_URI` and `MESSAGES_BUCKET`.

        Args:
            environment: The variables and their values. By default, those of this process.

        Raises:
            SettingsError: A variable is malformed, or one without a default is missing.
        """
        return cls(
            function_url=_function_url(environment),
            lake_uri=_lake_uri(environment),
            messages_bucket=_messages_bucket(environment),
            function_timeout=_function_timeout(environment),
            function_audience=optional(environment, "FUNCTION_AUDIENCE"),
            impersonate_service_account=_impersonate_service_account(environment),
        )


def _function_url(environment: Mapping[str, str]) -> str:
    url = required(environment, "FUNCTION_URL")
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and is_loopback(url)
    if not (parts.hostname and (parts.scheme == "https" or is_local)):
        raise SettingsError(
            "FUNCTION_URL",
            f"must be an https URL, or an http URL of this machine; it is {url!r}.",
        )
    return url


def _lake_uri(environment: Mapping[str, str]) -> str:
    uri = required(environment, "LAKE_URI")
    if not (re.match(r"gs://[a-z0-9]", uri) or PurePath(uri).is_absolute()):
        raise SettingsError("LAKE_URI", f"must be gs://BUCKET, or an absolute path; it is {uri!r}.")
    return uri


def _messages_bucket(environment: Mapping[str, str]) -> str:
    bucket = required(environment, "MESSAGES_BUCKET")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+[a-z0-9]", bucket):
        raise SettingsError(
            "MESSAGES_BUCKET",
            f"must be the name of a bucket, without gs:// and slashes; it is {bucket!r}.",
        )
    return bucket


def _function_timeout(environment: Mapping[str, str]) -> float:
    text = optional(environment, "FUNCTION_TIMEOUT") or str(_LONGEST_TIMEOUT)
    if not re.fullmatch(r"[0-9]+", text) or not 0 < int(text) <= _LONGEST_TIMEOUT:
        raise SettingsError(
            "FUNCTION_TIMEOUT",
            f"must be the function's timeout in seconds, up to {_LONGEST_TIMEOUT}; it is {text!r}.",
        )
    return float(text)


def _impersonate_service_account(environment: Mapping[str, str]) -> str | None:
    account = optional(environment, "IMPERSONATE_SERVICE_ACCOUNT")
    if account is not None and not re.fullmatch(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com", account):
        raise SettingsError(
            "IMPERSONATE_SERVICE_ACCOUNT",
            f"must be the e-mail address of a service account; it is {account!r}.",
        )
    return account


def required(environment: Mapping[str, str], variable: str) -> str:
    """The value of a variable.

    Args:
        environment: The variables and their values.
        variable: The name of the variable.

    Raises:
        SettingsError: It is not set.
    """
    value = optional(environment, variable)
    if value is None:
        raise SettingsError(variable, "is not set.")
    return value


def optional(environment: Mapping[str, str], variable: str) -> str | None:
    """The value of a variable, or None if it is not set.

    Args:
        environment: The variables and their values.
        variable: The name of the variable.
    """
    return environment.get(variable, "").strip() or None
