"""Writes Pipes messages to a Cloud Storage bucket, where the orchestrator reads them.

Messages are collected into chunks, one object a chunk: `<key_prefix>/1.json`, `<key_prefix>/2.json`
and so on, each with one JSON message a line. This is the layout of
`dagster_pipes.PipesBlobStoreMessageWriter`, so that other Pipes readers understand it too. That one
polls once a second, within the billed time, and after one failed upload loses all that follows.

Beside what Pipes defines, each message has a `number`, counted from 1, by which the orchestrator's
reader knows that none is missing and none came twice.
"""

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from typing import IO, Self

from dagster_pipes import (
    DagsterPipesError,
    PipesExtras,
    PipesMessage,
    PipesMessageWriter,
    PipesMessageWriterChannel,
    PipesParams,
)
from google.api_core.exceptions import PreconditionFailed
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from gcp_pipes.external.in_flight import not_forwarded
from gcp_pipes.external.storage import create_object
from gcp_pipes.protocol import CAN_BE_CANCELLED, MESSAGE_NUMBER, chunk_name

_CHUNK_SIZE = 1024 * 1024  # characters; a chunk that grows to this is uploaded without delay
_BUFFER_SIZE = 8 * _CHUNK_SIZE  # with as much waiting for upload, whoever writes more waits too
_NAMES_TAKEN = 10  # of chunks, by whoever cancels the call
_ATTEMPT_TIMEOUT = 30.0  # seconds without an answer from Cloud Storage
_RETRY = DEFAULT_RETRY.with_timeout(60.0).with_delay(initial=0.1, maximum=5.0)  # in seconds


class MessagesNotStoredError(DagsterPipesError):
    """Messages to Dagster could not be stored: what the function does must not go unseen."""


class PipesCloudStorageMessageWriterChannel(PipesMessageWriterChannel):
    """The messages of one request, on their way to the bucket.

    The first message, `opened`, is stored before the task begins: where it is not, no work has been
    done, and the call can safely be made again. From then on a background thread uploads what has
    been written every `interval` seconds, or as soon as a full chunk is waiting, so that logs are
    seen in Dagster while the task still runs.

    If the name of a further chunk is taken, Dagster has cancelled the call: see `cancellation`. The
    messages are then stored under the next name.

    Args:
        client: The Cloud Storage client to upload with.
        bucket: Name of the bucket, without `gs://`.
        key_prefix: What the names of the chunks begin with. None puts them at the bucket's root.
        interval: Longest time, in seconds, that a message waits for its upload to begin.
        on_cancelled: Called by a thread of the channel's when the call has been cancelled.
    """

    def __init__(
        self,
        client: storage.Client,
        bucket: str,
        key_prefix: str | None,
        *,
        interval: float = 0.5,
        on_cancelled: Callable[[], None] | None = None,
    ) -> None:
        self._bucket = client.bucket(bucket)
        self._on_cancelled = on_cancelled
        self._key_prefix = key_prefix
        self._interval = interval
        self._state = threading.Condition()  # guards the attributes from here to _closing
        self._lines: list[str] = []
        self._size = 0
        self._taken_count = 0  # of lines, for upload
        self._upload_error: Exception | None = None
        self._closing = False
        self._is_complete = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._upload_until_closing, name="pipes-upload")
        self._uploading = threading.Lock()  # one chunk at a time; guards the attribute below
        self._chunk_count = 0

    def write_message(self, message: PipesMessage) -> None:
        """Queue a message for upload.

        Args:
            message: The message, with JSON-serializable content.

        Raises:
            TypeError: The message holds a value that JSON has no form for.
            DagsterPipesError: The call has ended, or this is a process that the task has forked.
            MessagesNotStoredError: This or an earlier message could not be stored.
        """
        if os.getpid() != self._process:  # before any lock, which may never be released here
            raise DagsterPipesError(
                "Pipes messages cannot be sent from a forked process: the threads that upload them "
                "are not there. Return the value to the process of the task, and report it there, "
                'or start processes by the method "spawn".'
            )
        with self._state:
            self._state.wait_for(self._takes_messages)  # ends: every upload has a time limit
            self._raise_upload_error()
            if self._is_complete:
                raise DagsterPipesError(
                    "The call has ended: Dagster takes no further message of this task."
                )
            number = self._taken_count + len(self._lines) + 1
            line = json.dumps({**message, MESSAGE_NUMBER: number})
            self._lines.append(line)  # the one step that counts: a task may be stopped after any
            self._size += len(line)
            self._is_complete = message["method"] == "closed"
            if self._size >= _CHUNK_SIZE:
                self._state.notify_all()
        if message["method"] == "opened":
            self._upload_waiting()

    # No generator: if the context cannot be opened or closed, nothing closes this, and Python would
    # close a generator while it collects garbage, where to wait for a thread can be a deadlock.

    def __enter__(self) -> Self:
        """Upload in the background."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Store all messages that are left.

        Raises:
            MessagesNotStoredError: A message could not be stored.
        """
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join()  # every upload has a time limit
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
        name = chunk_name(self._key_prefix, index)
        data = payload.read()
        failed_attempts: list[Exception] = []
        create = _RETRY(create_object, on_error=failed_attempts.append)
        try:
            create(self._bucket.blob(name), data, timeout=_ATTEMPT_TIMEOUT)
        except PreconditionFailed:
            # After a failed attempt this says that the attempt had stored the chunk after all.
            # On the first attempt it says that someone else writes under this prefix.
            if not failed_attempts:
                raise

    def _upload_until_closing(self) -> None:
        closing = False
        # What this thread logs is not forwarded: each failed upload would make one more message.
        # An error is kept for the thread that runs the task.
        with not_forwarded(), suppress(MessagesNotStoredError):
            while not closing:
                with self._state:
                    self._state.wait_for(self._is_due, timeout=self._interval)
                    closing = self._closing
                self._upload_waiting()

    def _upload_waiting(self) -> None:
        """Store all messages that wait, as one chunk. None is passed over if one is lost."""
        with self._uploading:
            with self._state:
                self._raise_upload_error()
                self._taken_count += len(self._lines)
                lines, self._lines, self._size = self._lines, [], 0
                self._state.notify_all()
            if not lines:
                return
            try:
                self._store("\n".join(lines))
            except Exception as error:
                with self._state:
                    self._upload_error = error
                    self._state.notify_all()
                    self._raise_upload_error()

    def _store(self, chunk: str) -> None:
        """Store a chunk under the next name that is free."""
        for names_taken in range(_NAMES_TAKEN):
            self._chunk_count += 1
            try:
                self.upload_messages_chunk(StringIO(chunk), self._chunk_count)
            except PreconditionFailed:
                # The first name is taken by another request, or by a cancellation before its time.
                if self._chunk_count == 1 or names_taken == _NAMES_TAKEN - 1:
                    raise
                if self._on_cancelled is not None:
                    self._on_cancelled()
            else:
                return

    def _takes_messages(self) -> bool:
        return self._size < _BUFFER_SIZE or self._upload_error is not None

    def _is_due(self) -> bool:
        return self._size >= _CHUNK_SIZE or self._closing

    def _raise_upload_error(self) -> None:
        if self._upload_error is not None:
            raise MessagesNotStoredError(
                f"Messages to Dagster could not be stored in gs://{self._bucket.name}/"
                f"{self._key_prefix or ''}: {self._upload_error}. Check that the bucket exists and "
                "that the function's service account has roles/storage.objectCreator on it."
            ) from self._upload_error


class PipesCloudStorageMessageWriter(PipesMessageWriter[PipesCloudStorageMessageWriterChannel]):
    """Sends messages to Dagster through a Cloud Storage bucket.

    The orchestrator's `PipesCloudStorageMessageReader` chooses the bucket and a key prefix for each
    call and sends both along with the request. A writer is for one call.

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
        self._lock = threading.Lock()  # guards the attributes below
        self._is_cancelled = False
        self._when_cancelled: Callable[[], None] | None = None

    def get_opened_extras(self) -> PipesExtras:
        """What Dagster is told as the call begins: that it can be cancelled."""
        return {CAN_BE_CANCELLED: True}

    def when_cancelled(self, action: Callable[[], None]) -> None:
        """Do something, in another thread, as soon as Dagster is known to have cancelled the call.

        Args:
            action: What to do. It is done at once if that is known already.
        """
        with self._lock:
            self._when_cancelled = action
            is_late = self._is_cancelled
        if is_late:
            action()

    def open(  # type: ignore[override]  # the base class has a generator
        self, params: PipesParams
    ) -> PipesCloudStorageMessageWriterChannel:
        """A channel for one request; use it in a `with` block.

        Args:
            params: What the message reader sent: `bucket` (str) and, perhaps, `key_prefix` (str).

        Raises:
            DagsterPipesError: The params are unusable or name a bucket that is not allowed.
        """
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
            self._client,
            bucket,
            key_prefix,
            interval=self._interval,
            on_cancelled=self._notice_cancellation,
        )

    def _notice_cancellation(self) -> None:
        with self._lock:
            self._is_cancelled = True
            action = self._when_cancelled
        if action is not None:
            action()
