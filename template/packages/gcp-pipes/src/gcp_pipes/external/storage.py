"""Cloud Storage as the function uses it: objects are created, and never overwritten."""

from google.api_core.exceptions import (
    Forbidden,
    GoogleAPICallError,
    PreconditionFailed,
    ServiceUnavailable,
)
from google.cloud import storage
from requests.adapters import HTTPAdapter

_MOST_CONNECTIONS = 1_000  # kept for further requests


def keep_connections(client: storage.Client) -> storage.Client:
    """Let a client keep a connection for each of many requests at once.

    By default it keeps ten, closes all others after use, and logs a warning for each.

    Args:
        client: The client; it is changed, and returned.
    """
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS))
    return client


def create_object(blob: storage.Blob, text: str, *, timeout: float) -> None:
    """Create an object of JSON lines. This is one attempt; it takes `storage.objects.create`.

    Args:
        blob: The object.
        text: What it will hold.
        timeout: Seconds to wait for a response.

    Raises:
        google.api_core.exceptions.PreconditionFailed: The object exists.
        google.api_core.exceptions.ServiceUnavailable: A resumable upload, as large objects have it,
            lost its session. The next attempt opens a new one.
        google.api_core.exceptions.GoogleAPICallError: Cloud Storage refused the upload.
    """
    try:
        blob.upload_from_string(
            text,
            content_type="application/x-ndjson",
            if_generation_match=0,
            timeout=timeout,
            retry=None,
        )
    except Forbidden as error:
        # To replace an object takes more rights than to create one. Cloud Storage may check them
        # before it checks the precondition.
        if any(right in str(error) for right in ("storage.objects.delete", "storage.objects.get")):
            raise PreconditionFailed(str(error)) from error
        raise
    except GoogleAPICallError as error:
        if error.code == 410:
            raise ServiceUnavailable(f"The upload session has ended: {error}") from error
        raise
