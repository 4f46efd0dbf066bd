"""Says what to do when the data lake may not be used."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import google.auth
from deltalake.exceptions import DeltaError
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

_ROLE = "roles/storage.objectUser"
_RENEW = (
    "In Google Cloud, check the function's service account. On your own machine, restart "
    "`just dev`, or log in again: gcloud auth application-default login."
)
# In errors of delta-rs: the pattern, the reason, and what to do.
_REASONS = (
    (r"NoSuchBucket", "the bucket does not exist", "Create it, and grant the role."),
    (
        r"403 Forbidden|lacked the necessary privileges",
        "the account may not do this",
        "Grant the role.",
    ),
    (
        r"401 Unauthorized|lacked valid authentication",
        "the credentials of the account are not valid",
        _RENEW,
    ),
    (r"Error performing token request", "there is no token for the account", _RENEW),
)
_ACCOUNT = re.compile(r"[\w.-]+@[\w.-]+\.gserviceaccount\.com")
_COLORS = re.compile(r"\x1b\[\d+m")


class LakeAccessError(Exception):
    """The data lake may not be used. The message names the bucket, the account and the role."""


@contextmanager
def lake_errors(location: str) -> Iterator[None]:
    """Explain the errors of delta-rs in the block, which uses the table at `location`.

    Raises:
        LakeAccessError: The bucket does not exist, or may not be used.
        deltalake.exceptions.DeltaError: Another error that delta-rs raises without a class.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(_COLORS.sub("", str(error)).split())
        for pattern, reason, advice in _REASONS:
            if re.search(pattern, text):
                raise LakeAccessError(_explanation(location, reason, advice, text)) from error
        if type(error) is Exception:  # while rows are read
            raise DeltaError(text) from error
        raise


def _explanation(location: str, reason: str, advice: str, text: str) -> str:
    named = _ACCOUNT.search(text)
    return (
        f"The table {location} could not be used: {reason}. The bucket is "
        f"{urlsplit(location).netloc}, and the account is {named[0] if named else _own_account()}. "
        f"It needs {_ROLE} on the bucket. {advice} The error of delta-rs: {text}"
    )


def _own_account() -> str:
    """The service account that the function runs as."""
    try:
        credentials, _ = google.auth.default()
        credentials.refresh(Request())
    except (GoogleAuthError, OSError, ValueError):
        return "unknown, since there are no credentials"
    return getattr(credentials, "service_account_email", "that of the application's credentials")
