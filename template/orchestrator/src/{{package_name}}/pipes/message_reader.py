"""Reads Pipes messages from a Cloud Storage bucket, where the cloud function writes them.

The layout is that of `dagster_pipes.PipesBlobStoreMessageWriter`: chunks `<key_prefix>/1.json`,
`<key_prefix>/2.json` and so on, each with one JSON message a line.
"""

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from dagster_pipes import DagsterPipesError, PipesParams
from google.api_core.exceptions import NotFound
from google.cloud import storage


class PipesCloudStorageMessageReader(dg.PipesMessageReader):
    """Brings the messages of a cloud function into a Dagster run.

    One reader serves any number of calls, in turn or at once: each reads under a key prefix of its
    own, in a thread of its own. Reading takes `roles/storage.objectViewer` on the bucket, no more:
    `storage.objects.get`, and `storage.objects.list`, without which Cloud Storage answers 403 and
    not 404 for a chunk that is not there yet.

    Args:
        bucket: Name of the bucket that the function writes messages to, without `gs://`.
        client: The Cloud Storage client to read with.
        interval: Seconds between two looks for the next chunk while the function runs. When the
            call has returned, what is left is read without any wait.
    """

    def __init__(self, *, bucket: str, client: storage.Client, interval: float = 0.5) -> None:
        self.bucket = bucket
        self.client = client
        self.interval = interval

    @property
    def expected_writer_count(self) -> int:
        """One: a call runs one function. The base class says so too, but warns each time."""
        return 1

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        """Read in the background while the block runs; all is read when the block is left.

        Args:
            handler: Takes the messages, in the order in which they were written.

        Yields:
            What the message writer needs to know: `bucket` and `key_prefix`.

        Raises:
            DagsterPipesError: A chunk could not be read or understood.
        """
        params = self.get_params()
        reading = _Reading(self, params, handler)
        thread = threading.Thread(target=reading.read, name="pipes-read")
        thread.start()
        try:
            yield params
        finally:
            reading.call_has_returned.set()
            thread.join()  # ends: every download has a time limit
        if reading.error is not None:
            raise reading.error

    def get_params(self) -> PipesParams:
        """A place for the messages of one call: the bucket, and a key prefix never used before."""
        return {"bucket": self.bucket, "key_prefix": uuid.uuid4().hex}

    def download_messages_chunk(self, index: int, params: PipesParams) -> str | None:
        """The chunk's text, or None if there is no such chunk (yet).

        Transient failures are retried, for up to two minutes.

        Args:
            index: The chunk's number, from 1.
            params: What `get_params` returned for this call.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage refused the download.
            google.api_core.exceptions.RetryError: It failed until the time limit was reached.
        """
        blob = self.client.bucket(params["bucket"]).blob(f"{params['key_prefix']}/{index}.json")
        try:
            chunk: bytes = blob.download_as_bytes()
        except NotFound:
            return None
        return chunk.decode()

    def no_messages_debug_text(self) -> str:
        """What to look at when no message came."""
        return (
            f"Looked for messages in gs://{self.bucket}. The function must open Pipes with "
            "PipesCloudStorageMessageWriter, and needs roles/storage.objectCreator on the bucket."
        )


class _Reading:
    """The reading of one call's messages: what `read_messages` runs in its thread."""

    def __init__(
        self,
        reader: PipesCloudStorageMessageReader,
        params: PipesParams,
        handler: dg.PipesMessageHandler,
    ) -> None:
        self._reader = reader
        self._params = params
        self._handler = handler
        self.call_has_returned = threading.Event()
        self.error: Exception | None = None

    def read(self) -> None:
        """Hand over chunk after chunk until the function has closed, or nothing more can come."""
        index = 1
        try:
            while not self._handler.received_closed_message:
                # Asked before the download: what was written before the return is then found.
                is_last_look = self.call_has_returned.is_set()
                chunk = self._reader.download_messages_chunk(index, self._params)
                if chunk is not None:
                    self._hand_over(chunk)
                    index += 1
                elif is_last_look:
                    return
                else:
                    self.call_has_returned.wait(self._reader.interval)
        except Exception as error:
            location = f"gs://{self._params['bucket']}/{self._params['key_prefix']}/{index}.json"
            self.error = DagsterPipesError(
                f"The messages in {location} could not be read: {error!r}"
            )
            self.error.__cause__ = error

    def _hand_over(self, chunk: str) -> None:
        for line in chunk.split("\n"):
            self._handler.handle_message(json.loads(line))
