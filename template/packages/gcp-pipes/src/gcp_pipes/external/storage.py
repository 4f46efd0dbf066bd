"""How the function uses Cloud Storage: it creates objects, and never overwrites one."""

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
    """Let a client keep a connection for each request in flight.

    By default it keeps ten, closes all others after use, and logs a warning for each.

    Args:
        client: The client; it is changed, and returned.
    """
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS))
    return client


def create_object(blob: storage.Blob, text: str, *, timeout: float) -> None:
    """Create an object of JSON lines, in one attempt. It needs `storage.objects.create`."""
    try:
        blob.upload_from_string(
            text,
            content_type="application/x-ndjson",
            if_generation_match=0,
            timeout=timeout,
            retry=None,
        )
    except Forbidden as error:
        # Cloud Storage may check the permissions for replacing an object before the precondition.
        if any(
            permission in str(error)
            for permission in ("storage.objects.delete", "storage.objects.get")
        ):
            raise PreconditionFailed(str(error)) from error
        raise
    except GoogleAPICallError as error:
        if error.code == 410:
            raise ServiceUnavailable(f"The upload session has ended: {error}") from error
        raise
