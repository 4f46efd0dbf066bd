"""Writes Pipes messages to a Cloud Storage bucket, where the orchestrator reads them.

Messages are stored in chunks, one object each: `<key_prefix>/1.json`, `<key_prefix>/2.json` and so
on, with one JSON message a line. Other Pipes readers understand this layout, which is that of
`dagster_pipes.PipesBlobStoreMessageWriter`. We do not use that class: it polls once a second while
the function is billed, and after a failed upload it loses all later messages.

Each message also has a `number`, from 1, so the reader notices missing and duplicate messages.
"""

import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import StringIO
from typing import IO, Self

from dagster_pipes import (
    PIPES_PROTOCOL_VERSION,
    PIPES_PROTOCOL_VERSION_FIELD,
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
from werkzeug.exceptions import Conflict

from gcp_pipes.external.in_flight import not_forwarded
from gcp_pipes.external.liveness import Heartbeat
from gcp_pipes.external.storage import create_object
from gcp_pipes.protocol import (
    CAN_BE_CANCELLED,
    FUNCTION_NAME,
    HEARTBEAT_INTERVAL,
    MESSAGE_NUMBER,
    NOT_STARTED,
    PROTOCOL_VERSION,
    REPEATED,
    REPLACED_BY,
    SKIPS_REPEATED,
    TASK_ATTEMPT,
    VERSION,
    chunk_name,
)

_CHUNK_SIZE = 1024 * 1024  # characters; a chunk of this size is uploaded at once
_BUFFER_SIZE = 8 * _CHUNK_SIZE  # when it is full, writing a message blocks
_NAMES_TAKEN = 10  # how many chunk names to try, since requests to cancel may have taken some
_ATTEMPT_TIMEOUT = 30.0  # seconds to wait for a response from Cloud Storage
_RETRY = DEFAULT_RETRY.with_timeout(60.0).with_delay(initial=0.1, maximum=5.0)  # in seconds


class MessagesNotStoredError(DagsterPipesError):
    """Messages to Dagster could not be stored. The call fails, since Dagster cannot see it."""


class NotStartedError(MessagesNotStoredError):
    """It is not known whether this attempt may start, so it has done nothing. Dagster calls again.

    The first chunk exists, and who has stored it is unknown: this attempt, in an upload whose
    response was lost, or a retry that replaces this attempt.
    """


class PipesCloudStorageMessageWriterChannel(PipesMessageWriterChannel):
    """Writes the messages of one call to the bucket.

    The first message, `opened`, is stored before the task starts. If that fails, no work has been
    done and the call can safely be retried. A background thread then uploads new messages every
    `interval` seconds, or as soon as a chunk is full, so Dagster shows logs while the task runs.

    If the name of a later chunk exists already, Dagster has cancelled the call (see
    `cancellation`). The messages are then stored under the next name. So they are if it is unknown
    who has stored the chunk, and the reader accepts messages twice.

    Args:
        client: The Cloud Storage client.
        bucket: Name of the bucket, without `gs://`.
        key_prefix: The prefix of the chunks' names. None puts them at the root of the bucket.
        interval: How long a message waits for its upload, at most, in seconds.
        on_cancelled: Called when the call was cancelled, in another thread than the task's.
        heartbeat: Shows that the call is alive while there is nothing to store.
        may_repeat: Whether the reader skips messages that are stored again.
    """

    def __init__(
        self,
        client: storage.Client,
        bucket: str,
        key_prefix: str | None,
        *,
        interval: float = 0.5,
        on_cancelled: Callable[[], None] | None = None,
        heartbeat: Heartbeat | None = None,
        may_repeat: bool = False,
    ) -> None:
        self._bucket = client.bucket(bucket)
        self._on_cancelled = on_cancelled
        self._heartbeat = heartbeat
        self._key_prefix = key_prefix
        self._may_repeat = may_repeat
        self._interval = interval
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._upload_until_closing, name="pipes-upload")
        self._state = threading.Condition()  # guards the attributes from here to _is_complete
        self._lines: list[str] = []
        self._size = 0
        self._taken_count = 0  # how many lines were taken for upload
        self._upload_error: Exception | None = None
        self._closing = False
        self._is_complete = False
        self._uploading = threading.Lock()  # one upload at a time; guards the attribute below
        self._chunk_count = 0

    def write_message(self, message: PipesMessage) -> None:
        """Queue a message for upload.

        Args:
            message: The message, with JSON-serializable content.

        Raises:
            TypeError: The message is not JSON serializable.
            DagsterPipesError: The call has ended, or this is a forked process.
            MessagesNotStoredError: This or an earlier message could not be stored.
        """
        if os.getpid() != self._process:  # first: a lock may have been copied while it was held
            raise DagsterPipesError(
                "Pipes messages cannot be sent from a forked process: its upload threads exist "
                "only in the parent. Return the value to the process of the task and report it "
                'there, or start processes with the method "spawn".'
            )
        with self._state:
            self._state.wait_for(  # ends: every upload has a time limit
                lambda: self._size < _BUFFER_SIZE or self._upload_error is not None
            )
            self._raise_upload_error()
            if self._is_complete:
                raise DagsterPipesError(
                    "The call has ended: Dagster accepts no further messages from this task."
                )
            number = self._taken_count + len(self._lines) + 1
            line = json.dumps({**message, MESSAGE_NUMBER: number})
            self._lines.append(line)  # atomic: a task may be stopped before or after any line here
            self._size += len(line)
            self._is_complete = message["method"] == "closed"
            if self._size >= _CHUNK_SIZE:
                self._state.notify_all()
        if message["method"] == "opened":
            self._upload_waiting()

    # Not a generator: if the context cannot be opened or closed, nothing closes the channel. Python
    # would close a generator during garbage collection, where waiting for a thread can deadlock.

    def __enter__(self) -> Self:
        """Upload in the background."""
        self._thread.start()
        if self._heartbeat is not None:
            self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Store all remaining messages.

        Raises:
            MessagesNotStoredError: A message could not be stored.
        """
        with self._state:
            self._closing = True
            self._state.notify_all()
        try:
            with not_forwarded():  # the call has ended
                self._upload_waiting()
        finally:
            if self._heartbeat is not None:
                self._heartbeat.stop()
            self._thread.join()  # ends: every upload has a time limit

    def _upload_until_closing(self) -> None:
        # Forwarding what this thread logs would make one more message for each failed upload.
        # Errors are raised in the thread of the task.
        with not_forwarded(), suppress(MessagesNotStoredError):
            while True:
                with self._state:
                    self._state.wait_for(
                        lambda: self._size >= _CHUNK_SIZE or self._closing, timeout=self._interval
                    )
                    if self._closing:
                        return
                self._upload_waiting()
                if self._heartbeat is not None:
                    self._heartbeat.maintain()

    def _upload_waiting(self) -> None:
        """Store all waiting messages as one chunk. After an error, store no more."""
        with self._uploading:
            with self._state:
                self._raise_upload_error()
                self._taken_count += len(self._lines)
                lines, self._lines, self._size = self._lines, [], 0
                self._state.notify_all()
            if not lines:
                return
            try:
                self._store(lines)
            except Exception as error:
                if self._heartbeat is not None:  # nothing else may close the channel
                    self._heartbeat.stop()
                if isinstance(error, NotStartedError):
                    self._say_not_started(error)
                with self._state:
                    self._upload_error = error
                    self._state.notify_all()
                    self._raise_upload_error()

    def _store(self, lines: list[str]) -> None:
        """Store messages as a chunk under the next free name."""
        for names_taken in range(_NAMES_TAKEN):
            self._chunk_count += 1
            chunk = StringIO("\n".join(lines))
            try:
                is_own = self.upload_messages_chunk(chunk, self._chunk_count)
                if self._heartbeat is not None:
                    self._heartbeat.messages_stored()
                if is_own or not self._may_repeat:
                    return
                lines = [json.dumps({**json.loads(line), REPEATED: True}) for line in lines]
            except PreconditionFailed:
                # The first name exists if another request uses this prefix, or if the call was
                # cancelled before it started.
                if self._chunk_count == 1 or names_taken == _NAMES_TAKEN - 1:
                    raise
                if self._on_cancelled is not None:
                    self._on_cancelled()

    def upload_messages_chunk(self, payload: IO[str], index: int) -> bool:
        """Store one chunk, exactly once. Transient errors are retried.

        Args:
            payload: The messages, one JSON object a line.
            index: The number of the chunk, from 1.

        Returns:
            Whether the chunk with this number is known to be this one. If an attempt failed, and
            the next one found a chunk, a request to cancel the call may have stored it instead.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage rejected the chunk.
            google.api_core.exceptions.RetryError: It failed until the time limit.
            NotStartedError: A retry of the call may have stored the first chunk.
        """
        text = payload.read()
        failed_attempts: list[Exception] = []
        create = _RETRY(create_object, on_error=failed_attempts.append)
        try:
            blob = self._bucket.blob(chunk_name(self._key_prefix, index))
            create(blob, text, timeout=_ATTEMPT_TIMEOUT)
        except PreconditionFailed:
            if not failed_attempts:
                raise
            if index == 1:
                raise NotStartedError(
                    "It is not known whether a retry has replaced this attempt, since an upload "
                    f"of its first messages failed ({failed_attempts[-1]}). It does nothing."
                ) from failed_attempts[-1]
            return False
        return True

    def _say_not_started(self, error: NotStartedError) -> None:
        """Let Dagster know, if it reads these messages, that it has to call again."""
        exception: dict[str, object] = {"message": str(error), "stack": [], "name": NOT_STARTED}
        closed = {
            PIPES_PROTOCOL_VERSION_FIELD: PIPES_PROTOCOL_VERSION,
            "method": "closed",
            "params": {"exception": {**exception, "cause": None, "context": None}},
            MESSAGE_NUMBER: 2,
        }
        with suppress(Exception):  # the response says the same
            self.upload_messages_chunk(StringIO(json.dumps(closed)), 2)

    def block(self, replaced_by: str | None) -> None:
        """Store the first chunk, so that the attempt cannot store its own, and does not start.

        Args:
            replaced_by: The key prefix of the attempt that replaces it.

        Raises:
            Conflict: The attempt has stored it.
            MessagesNotStoredError: It could not be stored.
        """
        try:
            blob = self._bucket.blob(chunk_name(self._key_prefix, 1))
            # Not as other chunks: after a failed attempt, it is unknown who has stored it.
            text = warning_chunk("A retry has replaced this attempt", replaced_by=replaced_by)
            _RETRY(create_object)(blob, text, timeout=_ATTEMPT_TIMEOUT)
        except PreconditionFailed as error:
            raise Conflict(
                "An earlier attempt of this call has started, although its request was rejected. "
                "This attempt does nothing. The earlier one may do all of its work, or has done "
                "it: see its logs."
            ) from error
        except Exception as error:
            self._upload_error = error
            self._raise_upload_error()

    def _raise_upload_error(self) -> None:
        if isinstance(self._upload_error, NotStartedError):
            raise self._upload_error
        if isinstance(self._upload_error, PreconditionFailed):
            raise MessagesNotStoredError(
                f"gs://{self._bucket.name}/{chunk_name(self._key_prefix, self._chunk_count)} "
                "exists already. A retry has replaced this attempt, its call was cancelled, or "
                "another request has the same key prefix."
            ) from self._upload_error
        if self._upload_error is not None:
            raise MessagesNotStoredError(
                f"Messages to Dagster could not be stored in gs://{self._bucket.name}/"
                f"{self._key_prefix or ''}: {self._upload_error}. Check that the bucket exists and "
                "that the function's service account has roles/storage.objectCreator on it."
            ) from self._upload_error


class PipesCloudStorageMessageWriter(PipesMessageWriter[PipesCloudStorageMessageWriterChannel]):
    """Sends the messages of one call to Dagster through a Cloud Storage bucket.

    The orchestrator's `PipesCloudStorageMessageReader` chooses the bucket and a key prefix for each
    call, and sends both in the request.

    Args:
        client: The Cloud Storage client.
        bucket: The only bucket to write to: requests with another bucket are rejected. None allows
            any bucket.
        interval: How long a message waits for its upload, at most, in seconds.
        heartbeat_interval: How long nothing is stored, at most, in seconds. For Dagster, a function
            that has stored nothing for two and a half intervals is dead.
    """

    def __init__(
        self,
        client: storage.Client,
        *,
        bucket: str | None = None,
        interval: float = 0.5,
        heartbeat_interval: float = 15.0,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._interval = interval
        self._heartbeat_interval = heartbeat_interval
        self._heartbeat: Heartbeat | None = None
        self._lock = threading.Lock()  # guards the attributes below
        self._is_cancelled = False
        self._when_cancelled: Callable[[], None] | None = None

    def get_opened_extras(self) -> PipesExtras:
        """What the message `opened` says: who runs the call, and what it can do."""
        has_heartbeat = self._heartbeat is not None and self._heartbeat.has_started
        return {
            VERSION: PROTOCOL_VERSION,
            CAN_BE_CANCELLED: True,
            HEARTBEAT_INTERVAL: self._heartbeat_interval if has_heartbeat else None,
            FUNCTION_NAME: os.environ.get("FUNCTION_NAME"),
            TASK_ATTEMPT: int(os.environ.get("CLOUD_RUN_TASK_ATTEMPT", 0)),
        }

    def when_cancelled(self, action: Callable[[], None]) -> None:
        """Call `action` when the call is known to be cancelled, in the thread that stores messages.

        Args:
            action: The function to call. If the call is cancelled already, it is called here.
        """
        with self._lock:
            self._when_cancelled = action
            is_cancelled = self._is_cancelled
        if is_cancelled:
            action()

    def open(  # type: ignore[override]  # the base class has a generator
        self, params: PipesParams
    ) -> PipesCloudStorageMessageWriterChannel:
        """The channel for one call; use it in a `with` block.

        Args:
            params: What the message reader sent: `bucket` (str) and, optionally, `key_prefix` (str)
                and `skips_repeated` (bool).

        Raises:
            DagsterPipesError: The params are invalid, or the bucket is not allowed.
        """
        bucket, key_prefix = params.get("bucket"), params.get("key_prefix")
        if not isinstance(bucket, str) or not isinstance(key_prefix, str | None):
            raise DagsterPipesError(
                "The Pipes message params must have a `bucket`, and may have a `key_prefix`, both "
                f"strings; got {dict(params)}. Use PipesCloudStorageMessageReader in Dagster."
            )
        if self._bucket is not None and bucket != self._bucket:
            raise DagsterPipesError(
                f"Messages go to the bucket {self._bucket!r}, not to {bucket!r}. MESSAGES_BUCKET "
                "must be the same for the function and for Dagster."
            )
        self._heartbeat = Heartbeat(
            self._client,
            bucket,
            key_prefix,
            interval=self._heartbeat_interval,
            on_cancelled=self._call_when_cancelled,
        )
        return PipesCloudStorageMessageWriterChannel(
            self._client,
            bucket,
            key_prefix,
            interval=self._interval,
            on_cancelled=self._call_when_cancelled,
            heartbeat=self._heartbeat,
            may_repeat=params.get(SKIPS_REPEATED) is True,
        )

    def block(self, params: PipesParams, key_prefixes: Sequence[str]) -> None:
        """Prevent earlier attempts of a call from starting: create the first chunk of each.

        Args:
            params: As for `open`, for the messages of this attempt.
            key_prefixes: The key prefixes of the earlier attempts.

        Raises:
            Conflict: One of them has started.
            DagsterPipesError: The params are invalid.
            MessagesNotStoredError: A chunk could not be stored.
        """
        for key_prefix in key_prefixes:
            if not key_prefix:
                raise DagsterPipesError("The key prefix of an earlier attempt is missing.")
            self.open({**params, "key_prefix": key_prefix}).block(params.get("key_prefix"))

    def _call_when_cancelled(self) -> None:
        with self._lock:
            self._is_cancelled = True
            action = self._when_cancelled
        if action is not None:
            action()


def warning_chunk(text: str, replaced_by: str | None = None) -> str:
    """A chunk with a warning as its only message.

    It takes the name of a chunk, so the attempt that finds it cannot store its own.

    Args:
        text: The warning.
        replaced_by: The key prefix of the attempt that replaces that one, if one does.
    """
    message = {
        PIPES_PROTOCOL_VERSION_FIELD: PIPES_PROTOCOL_VERSION,
        "method": "log",
        "params": {"message": text, "level": "WARNING"},
    }
    return json.dumps(message | ({REPLACED_BY: replaced_by} if replaced_by else {}))
