"""Creates objects in Cloud Storage, and never overwrites any."""

from google.api_core.exceptions import (
    Forbidden,
    GoogleAPICallError,
    PreconditionFailed,
    ServiceUnavailable,
)
from google.cloud import storage
from requests.adapters import HTTPAdapter

_MOST_CONNECTIONS = 1_000  # kept open for later requests


def keep_connections(client: storage.Client) -> storage.Client:
    """Let a client keep more connections open, for many requests at the same time.

    By default it keeps ten. It closes all others after use, and logs a warning for each.

    Args:
        client: The client, which is changed and returned.
    """
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS))
    return client


def create_object(blob: storage.Blob, text: str, *, timeout: float) -> None:
    """Create an object of JSON lines in one attempt, or raise `PreconditionFailed` if it exists."""
    try:
        blob.upload_from_string(
            text,
            content_type="application/x-ndjson",
            if_generation_match=0,
            timeout=timeout,
            retry=None,
        )
    except Forbidden as error:
        # Replacing an object requires more permissions than creating one. Cloud Storage may check
        # them before the precondition.
        if any(right in str(error) for right in ("storage.objects.delete", "storage.objects.get")):
            raise PreconditionFailed(str(error)) from error
        raise
    except GoogleAPICallError as error:
        if error.code == 410:  # a large upload lost its session: a new attempt opens another
            raise ServiceUnavailable(f"The upload session has ended: {error}") from error
        raise
