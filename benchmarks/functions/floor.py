"""A function that makes one upload: the least that a message costs."""

import functools
import os

import flask
from google.cloud import storage


@functools.cache
def storage_client() -> storage.Client:
    """The instance's one Cloud Storage client."""
    return storage.Client()


def main(request: flask.Request) -> str:
    """Store the request's body under the name that it was sent with."""
    bucket = storage_client().bucket(os.environ["MESSAGES_BUCKET"])
    bucket.blob(request.args["name"]).upload_from_string(request.data, if_generation_match=0)
    return "OK"
