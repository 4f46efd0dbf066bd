"""Says what to do when a table in the data lake does not exist or may not be used."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import google.auth
from deltalake.exceptions import DeltaError, TableNotFoundError
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

_ROLE = "roles/storage.objectUser"
_REASONS = {
    r"NoSuchBucket": "the bucket does not exist",
    r"403 Forbidden|lacked the necessary privileges": "the account may not do this",
    r"401 Unauthorized|lacked valid authentication": "the credentials of the account are not valid",
    r"Error performing token request": "there are no credentials, since the metadata server did "
    "not respond",
}
_ACCOUNT = re.compile(r"[\w.-]+@[\w.-]+\.gserviceaccount\.com")
_COLORS = re.compile(r"\x1b\[\d+m")


class LakeAccessError(Exception):
    """The data lake may not be used. The message names the bucket, the account and the role."""


@contextmanager
def lake_errors(location: str) -> Iterator[None]:
    """Explain the errors of delta-rs in the block, which uses the table at `location`.

    Raises:
        LakeAccessError: The bucket does not exist, or may not be used.
        TableNotFoundError: The table does not exist.
    """
    try:
        yield
    except TableNotFoundError as error:
        raise TableNotFoundError(
            f"There is no table at {location}. Materialize the asset that writes it first."
        ) from error
    except (DeltaError, OSError) as error:
        text = _COLORS.sub("", str(error))
        for pattern, reason in _REASONS.items():
            if re.search(pattern, text):
                raise LakeAccessError(_explanation(location, reason, text)) from error
        raise


def _explanation(location: str, reason: str, text: str) -> str:
    named = _ACCOUNT.search(text)
    return (
        f"The table {location} could not be used: {reason}. The bucket is "
        f"{urlsplit(location).netloc}, the account is {named[0] if named else _own_account()}. "
        f"Create the bucket if it does not exist, and grant the account {_ROLE} on it. The error "
        f"of delta-rs: {' '.join(text.split())}"
    )


def _own_account() -> str:
    """The service account that the function runs as."""
    try:
        credentials, _ = google.auth.default()
        credentials.refresh(Request())
    except GoogleAuthError:
        return "unknown, since there are no credentials"
    return getattr(credentials, "service_account_email", "that of the application's credentials")
