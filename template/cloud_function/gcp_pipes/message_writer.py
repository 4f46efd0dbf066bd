"""Writes Pipes messages to a Cloud Storage bucket, where the orchestrator reads them.

Messages are collected into chunks, one object a chunk: `<key_prefix>/1.json`, `<key_prefix>/2.json`
and so on, each with one JSON message a line. This is the layout of
`dagster_pipes.PipesBlobStoreMessageWriter`, so that other Pipes readers understand it too. That one
polls once a second, within the billed time, and after one failed upload loses all that follows.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import IO

import requests
from dagster_pipes import (
    DagsterPipesError,
    PipesMessage,
    PipesMessageWriter,
    PipesMessageWriterChannel,
    PipesParams,
)
from google.api_core.exceptions import PreconditionFailed, ServerError, TooManyRequests
from google.api_core.retry import Retry, if_exception_type
from google.cloud import storage

_CHUNK_SIZE = 1024 * 1024  # characters; a chunk that grows to this is uploaded without delay
_UPLOAD_TIMEOUT = 60.0  # seconds for one chunk, retries included

_is_transient = if_exception_type(
    TooManyRequests, ServerError, requests.ConnectionError, requests.Timeout
)


class PipesCloudStorageMessageWriterChannel(PipesMessageWriterChannel):
    """The messages of one request, on their way to the bucket.

    A background thread uploads what has been written every `interval` seconds, or as soon as a
    full chunk is waiting, so that logs are seen in Dagster while the task still runs.

    Args:
        client: The Cloud Storage client to upload with.
        bucket: Name of the bucket, without `gs://`.
        key_prefix: What the names of the chunks begin with. None puts them at the bucket's root.
        interval: Longest time, in seconds, that a message waits for its upload to begin.
    """

    def __init__(
        self,
        client: storage.Client,
        bucket: str,
        key_prefix: str | None,
        *,
        interval: float = 0.5,
    ) -> None:
        self._bucket = client.bucket(bucket)
        self._key_prefix = key_prefix
        self._interval = interval
        self._state = threading.Condition()  # guards the four attributes below
        self._lines: list[str] = []
        self._size = 0
        self._closing = False
        self._upload_error: Exception | None = None

    def write_message(self, message: PipesMessage) -> None:
        """Queue a message for upload.

        Args:
            message: The message, with JSON-serializable content.

        Raises:
            TypeError: The message holds a value that JSON has no form for.
            DagsterPipesError: An earlier message could not be stored.
        """
        line = json.dumps(message)
        with self._state:
            self._raise_upload_error()
            self._lines.append(line)
            self._size += len(line)
            if self._size >= _CHUNK_SIZE:
                self._state.notify()

    @contextmanager
    def buffered_upload_loop(self) -> Iterator[None]:
        """Upload in the background while the block runs; all is stored when the block is left.

        Raises:
            DagsterPipesError: A message could not be stored.
        """
        thread = threading.Thread(target=self._upload_until_closing, name="pipes-upload")
        thread.start()
        try:
            yield
        finally:
            with self._state:
                self._closing = True
                self._state.notify()
            thread.join()  # ends: every upload has a time limit
        self._raise_upload_error()

    def upload_messages_chunk(self, payload: IO[str], index: int) -> None:
        """Store one chunk, and never twice.

        Transient failures are retried. An object that exists is never overwritten, which also
        means that the function needs no right to delete: `storage.objects.create` is enough.

        Args:
            payload: The messages, one JSON object a line.
            index: The chunk's number, from 1.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage refused the chunk.
            google.api_core.exceptions.RetryError: It failed until the time limit was reached.
        """
        key = f"{self._key_prefix}/{index}.json" if self._key_prefix else f"{index}.json"
        blob = self._bucket.blob(key)
        data = payload.read()
        failed_attempts: list[Exception] = []

        def upload() -> None:
            blob.upload_from_string(
                data,
                content_type="application/x-ndjson",
                if_generation_match=0,
                retry=None,  # retried below, where the attempts can be counted
            )

        retry = Retry(
            predicate=_is_transient,
            initial=0.1,
            maximum=5.0,
            timeout=_UPLOAD_TIMEOUT,
            on_error=failed_attempts.append,
        )
        try:
            retry(upload)()
        except PreconditionFailed:
            # After a failed attempt this says that the attempt had stored the chunk after all.
            # On the first attempt it says that someone else writes under this prefix.
            if not failed_attempts:
                raise

    def _upload_until_closing(self) -> None:
        index = 0
        closing = False
        while not closing:
            with self._state:
                self._state.wait_for(self._is_due, timeout=self._interval)
                closing = self._closing
                lines, self._lines, self._size = self._lines, [], 0
            if not lines:
                continue
            index += 1
            try:
                self.upload_messages_chunk(StringIO("\n".join(lines)), index)
            except Exception as error:  # kept for the thread that runs the task
                with self._state:
                    self._upload_error = error
                return

    def _is_due(self) -> bool:
        return self._closing or self._size >= _CHUNK_SIZE

    def _raise_upload_error(self) -> None:
        if self._upload_error is not None:
            raise DagsterPipesError(
                f"Messages to Dagster could not be stored in gs://{self._bucket.name}/"
                f"{self._key_prefix or ''}: {self._upload_error}. Check that the bucket exists and "
                "that the function's service account has roles/storage.objectCreator on it."
            ) from self._upload_error


class PipesCloudStorageMessageWriter(PipesMessageWriter[PipesCloudStorageMessageWriterChannel]):
    """Sends messages to Dagster through a Cloud Storage bucket.

    The orchestrator's `PipesCloudStorageMessageReader` chooses the bucket and a key prefix for each
    call and sends both along with the request.

    Args:
        client: The Cloud Storage client to upload with.
        bucket: The only bucket to write to; a request that names another is refused. None allows
            whichever bucket the request names.
        interval: Longest time, in seconds, that a message waits for its upload to begin.
    """

    def __init__(
        self, client: storage.Client, *, bucket: str | None = None, interval: float = 0.5
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._interval = interval

    @contextmanager
    def open(self, params: PipesParams) -> Iterator[PipesCloudStorageMessageWriterChannel]:
        """Open a channel for one request.

        Args:
            params: What the message reader sent: `bucket` (str) and, perhaps, `key_prefix` (str).

        Raises:
            DagsterPipesError: The params are unusable or name a bucket that is not allowed, or a
                message could not be stored.
        """
        channel = self.make_channel(params)
        with channel.buffered_upload_loop():
            yield channel

    def make_channel(self, params: PipesParams) -> PipesCloudStorageMessageWriterChannel:
        """Make the channel that `params` describe, without starting its uploads."""
        bucket, key_prefix = params.get("bucket"), params.get("key_prefix")
        if not isinstance(bucket, str) or not isinstance(key_prefix, str | None):
            raise DagsterPipesError(
                "The Pipes message params must hold a `bucket` and may hold a `key_prefix`, both "
                f"strings; got {dict(params)}. Use PipesCloudStorageMessageReader in Dagster."
            )
        if self._bucket is not None and bucket != self._bucket:
            raise DagsterPipesError(
                f"Messages go to the bucket {self._bucket!r}, not to {bucket!r}. MESSAGES_BUCKET "
                "must be the same for the function and for Dagster."
            )
        return PipesCloudStorageMessageWriterChannel(
            self._client, bucket, key_prefix, interval=self._interval
        )
