"""Uploads bundles to the bucket for sources, from which Google builds."""

import hashlib

from deployment.bundle import Bundle
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, GoogleError


def upload_bundle(api: GoogleApi, bundle: Bundle, *, bucket: str, object: str) -> None:
    """Upload a bundle, unless it exists. Its name contains its hash.

    Args:
        api: Sends the request.
        bundle: The bundle.
        bucket: The bucket for sources.
        object: The name of the object.

    Raises:
        DeploymentError: Another recipe has built the bundle again, from other sources.
        GoogleError: Google rejected the request.
    """
    content = bundle.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != bundle.sha256:
        raise DeploymentError(
            f"Another recipe has built the bundle of {bundle.folder.name}/ again, from other "
            "sources. Deploy again."
        )
    try:
        api.request(
            "POST",
            f"https://storage.googleapis.com/upload/storage/v1/b/{bucket}/o",
            params={"uploadType": "media", "name": object, "ifGenerationMatch": "0"},
            data=content,
        )
    except GoogleError as error:
        if not _exists_already(error):
            raise


def _exists_already(error: GoogleError) -> bool:
    """True if an upload was rejected because the object exists.

    That is 412 Precondition Failed, or 403 if Google first checks the right to replace the object.
    """
    return error.status == 412 or (error.status == 403 and "storage.objects.delete" in str(error))
