"""Reads Pipes messages from a Cloud Storage bucket, where tasks write them.

The layout is that of `dagster_pipes.PipesBlobStoreMessageWriter`: chunks `<key_prefix>/1.json`,
`<key_prefix>/2.json` and so on, each with one JSON message a line. The messages of `gcp_pipes` have
a `number`, which shows whether any is missing or was stored twice.
"""

import copy
import json
import math
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

import dagster as dg
import requests
from dagster_pipes import DagsterPipesError, PipesParams
from google.api_core.exceptions import NotFound
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import DEFAULT_POOLSIZE, BaseAdapter, HTTPAdapter

from gcp_pipes.orchestrator.messages import CallMessageHandler
from gcp_pipes.protocol import (
    MESSAGE_NUMBER,
    REPEATED,
    SKIPS_REPEATED,
    chunk_name,
    heartbeat_name,
)

_ATTEMPT_TIMEOUT = 30.0  # seconds to wait for a response from Cloud Storage
_RETRY = DEFAULT_RETRY.with_timeout(30.0).with_delay(initial=0.1, maximum=5.0)  # in seconds
_FIRST_INTERVAL = 0.005  # seconds, doubled with each request up to the interval of the reader
_INTERVAL_PER_CALL = 0.1  # seconds, with many calls in flight: so there are ten requests a second
_MOST_CONNECTIONS = 1_000  # kept to Cloud Storage, one for each call in flight
_LONGEST_INTERVAL = 15.0  # seconds, however many calls are in flight
_TIME_TO_STORE = 1.0  # seconds for a heartbeat that is due
_MOST_ERRORS = 10  # reported of one call: all messages often have the same


class PipesCloudStorageMessageReader(dg.PipesMessageReader):
    """Reads the messages of tasks into a Dagster run.

    One reader serves any number of calls, also at the same time: each has its own key prefix and
    its own thread. The reader needs `roles/storage.objectViewer` on the bucket:
    `storage.objects.get`, and `storage.objects.list`, without which Cloud Storage responds 403
    instead of 404 for a chunk that is not there yet.

    Args:
        bucket: Name of the bucket that the task writes messages to, without `gs://`.
        client: The Cloud Storage client. It keeps its connections until it is closed.
        interval: Longest time, in seconds, between two requests for the next chunk while the
            function runs. When the call has returned, the rest is read at once.
    """

    def __init__(self, *, bucket: str, client: storage.Client, interval: float = 0.5) -> None:
        self.bucket = bucket
        self.client = client
        self.interval = interval
        self.first_interval = min(_FIRST_INTERVAL, interval)
        self._params: PipesParams | None = None  # None: each call gets new ones
        _keep_connections(client._http)  # not public, but Google's guides use it

    def for_many_calls(self, count: int) -> Self:
        """The same reader, with an interval that grows with the number of calls in flight.

        So a short call needs no more requests than it has chunks.

        Args:
            count: How many calls are in flight at the same time.
        """
        reader = copy.copy(self)
        reader.interval = max(self.interval, min(count * _INTERVAL_PER_CALL, _LONGEST_INTERVAL))
        reader.first_interval = reader.interval / 2
        return reader

    def first_message(self, params: PipesParams) -> str | None:
        """The method of the first message, such as `opened`; None if there is no message (yet).

        Args:
            params: The call's parameters, from `get_params`.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage rejected the request.
            google.api_core.exceptions.RetryError: It failed until the time limit.
            ValueError: The chunk is not JSON.
        """
        chunk = self.download_messages_chunk(1, params)
        return None if chunk is None else str(json.loads(chunk.split("\n")[0]).get("method"))

    def age(self, params: PipesParams) -> float:
        """How long ago the first chunk was stored, in seconds.

        Args:
            params: The call's parameters, from `get_params`.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage rejected the request, or
                there is no chunk.
        """
        blob = self.client.bucket(params["bucket"]).blob(chunk_name(params["key_prefix"], 1))
        blob.reload(timeout=_ATTEMPT_TIMEOUT, retry=_RETRY)
        stored: datetime = blob.time_created
        return max((datetime.now(UTC) - stored).total_seconds(), 0.0)

    def reading_at(self, params: PipesParams) -> Self:
        """The same reader for messages at another place, such as those of an earlier attempt.

        Args:
            params: The parameters of the message writer: `bucket` and `key_prefix`.
        """
        reader = copy.copy(self)
        reader._params = params
        return reader

    @property
    def expected_writer_count(self) -> int:
        """One: a call runs one task. The base class says so too, but warns each time."""
        return 1

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        """Read in the background while the block runs. All messages are read when it ends.

        Errors in the messages are reported to the run at once, and all other messages are read.

        Args:
            handler: Handles the messages, in the order in which they were written.

        Yields:
            The parameters of the message writer: `bucket` and `key_prefix`.

        Raises:
            DagsterPipesError: Messages are missing, duplicated, or could not be read or parsed.
        """
        params = self.get_params()
        reading = _Reading(self, params, handler)
        thread = threading.Thread(target=reading.read, name="pipes-read", daemon=True)
        thread.start()
        try:
            yield params
        finally:
            reading.call_has_returned.set()
            thread.join()  # ends: every download has a time limit
        if reading.errors:
            raise DagsterPipesError("\n".join(reading.errors))

    def get_params(self) -> PipesParams:
        """The bucket, and a new key prefix for the messages of one call, which may be repeated."""
        return self._params or {
            "bucket": self.bucket,
            "key_prefix": uuid.uuid4().hex,
            SKIPS_REPEATED: True,
        }

    def download_messages_chunk(self, index: int, params: PipesParams) -> str | None:
        """The chunk's text, or None if the chunk does not exist (yet).

        Transient errors are retried for up to half a minute.

        Args:
            index: The chunk's number, from 1.
            params: The call's parameters, from `get_params`.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage rejected the request.
            google.api_core.exceptions.RetryError: It failed until the time limit.
            UnicodeDecodeError: The chunk is not text.
        """
        chunk = self._download(chunk_name(params["key_prefix"], index), params)
        return None if chunk is None else chunk.decode()

    def has_heartbeat(self, number: int, params: PipesParams) -> bool:
        """Whether a call without new messages has shown that it is alive.

        Args:
            number: The heartbeat's number, from 1.
            params: The call's parameters, from `get_params`.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage rejected the request.
            google.api_core.exceptions.RetryError: It failed until the time limit.
        """
        return self._download(heartbeat_name(params["key_prefix"], number), params) is not None

    def _download(self, name: str, params: PipesParams) -> bytes | None:
        """An object's content, or None if it does not exist (yet)."""
        blob = self.client.bucket(params["bucket"]).blob(name)
        try:
            content: bytes = blob.download_as_bytes(timeout=_ATTEMPT_TIMEOUT, retry=_RETRY)
        except NotFound:
            return None
        return content

    def list_messages_chunks(self, params: PipesParams) -> list[int]:
        """The numbers of all chunks that exist.

        Args:
            params: The call's parameters, from `get_params`.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage rejected the request.
        """
        blobs = self.client.list_blobs(
            params["bucket"],
            prefix=f"{params['key_prefix']}/",
            timeout=_ATTEMPT_TIMEOUT,
            retry=_RETRY,
        )
        found = (re.search(r"/(\d+)\.json$", blob.name) for blob in blobs)
        return sorted(int(match[1]) for match in found if match)

    def no_messages_debug_text(self) -> str:
        """What to check if no message was received."""
        return (
            f"The messages bucket is gs://{self.bucket}. The task must open Pipes with "
            "PipesCloudStorageMessageWriter, and needs roles/storage.objectCreator on the bucket."
        )


def _leave_signals_to_main_thread() -> None:
    """Block in this thread the signals that terminate a run.

    Linux lets any thread have a signal. If it is not the main thread, which waits for the response
    of the function, the main thread goes on waiting, and the call is not cancelled.
    """
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


class _Reading:
    """Reads one call's messages, in a thread of `read_messages`."""

    def __init__(
        self,
        reader: PipesCloudStorageMessageReader,
        params: PipesParams,
        handler: dg.PipesMessageHandler,
    ) -> None:
        self._reader = reader
        self._params = params
        self._handler = handler
        # None for a handler of Dagster's, which knows of no heartbeats.
        self._call = handler if isinstance(handler, CallMessageHandler) else None
        self._place = f"gs://{params['bucket']}/{params['key_prefix']}/"
        self._next_chunk = 1
        self._next_number = 1
        self._has_closed = False
        self._last_sign = time.monotonic()  # of life
        self._due: float | None = None  # when to look for the next heartbeat, after one on time
        self._is_overdue = False
        self.call_has_returned = threading.Event()
        self.errors: list[str] = []

    def read(self) -> None:
        """Read the chunks in order until the message `closed`, or until the call has returned."""
        _leave_signals_to_main_thread()
        is_last_request = False
        has_logged_error = False
        interval = self._reader.first_interval
        while not (self._has_closed or is_last_request):
            is_last_request = self.call_has_returned.wait(min(interval, self._time_to_live()))
            interval = min(2 * interval, self._reader.interval)
            asked = time.monotonic()
            try:
                if is_last_request or not self._read_heartbeats():
                    self._read_available()
                    self._look_for_death(asked)
                if is_last_request and not self._has_closed:
                    self._read_after_gaps()
            except Exception as error:
                self._last_sign = time.monotonic()  # the task may not be able to store any
                text = (
                    f"Could not read {self._place}{self._next_chunk}.json: {error}. Dagster needs "
                    "roles/storage.objectViewer on the bucket."
                )
                if is_last_request:
                    self._report(text)
                elif not has_logged_error:  # the next request may succeed
                    self._log(text)
                    has_logged_error = True

    def _read_available(self) -> None:
        while not self._has_closed:
            try:
                chunk = self._reader.download_messages_chunk(self._next_chunk, self._params)
            except UnicodeDecodeError as error:
                self._report(f"{self._place}{self._next_chunk}.json is not text: {error}.")
            else:
                if chunk is None:
                    return
                self._handle(chunk)
            self._next_chunk += 1

    def _read_after_gaps(self) -> None:
        for index in self._reader.list_messages_chunks(self._params):
            if index > self._next_chunk:
                self._report(f"{self._place}{self._next_chunk}.json is missing.")
                self._next_chunk = index
                self._read_available()

    def _read_heartbeats(self) -> bool:
        """Look for a heartbeat, if there should be a new one; return whether there is."""
        handler = self._call
        if handler is None or handler.heartbeat_interval is None:
            return False
        interval = handler.heartbeat_interval
        due = self._due or self._last_sign + interval + _TIME_TO_STORE
        is_caught_up = handler.heartbeat_count > 0 or not handler.is_followed
        if time.monotonic() < due and is_caught_up:
            return False
        count = handler.heartbeat_count
        while self._reader.has_heartbeat(handler.heartbeat_count + 1, self._params):
            handler.heartbeat_count += 1
            self._last_sign = time.monotonic()
            if not handler.is_followed:  # there can be no other one yet
                break
        if handler.heartbeat_count == count:
            self._is_overdue = True
            return False
        self._due = None
        if not (self._is_overdue or handler.is_followed):
            # In step with the task: from look to look, the reader would fall behind.
            self._last_sign, self._due = due, due + interval
        self._is_overdue = False
        return True

    def _look_for_death(self, asked: float) -> None:
        """Let the call fail if the task has shown no sign of life for too long.

        Args:
            asked: When the latest request to Cloud Storage was made. While Cloud Storage does not
                respond, the task may be unable to store anything.
        """
        if self._last_sign < asked:
            self._last_sign += time.monotonic() - asked
        if self._call is None or self._has_closed or self._time_to_live() > 0:
            return
        silence = time.monotonic() - self._last_sign
        if not self._read_heartbeats():  # there may be new ones, if reading has taken long
            self._call.presume_dead(silence)

    def _time_to_live(self) -> float:
        """How long the task may show no sign of life until it counts as dead, in seconds."""
        handler = self._call
        if handler is None or handler.longest_silence is None or handler.silence is not None:
            return math.inf
        return max(self._last_sign + handler.longest_silence - time.monotonic(), 0.0)

    def _handle(self, chunk: str) -> None:
        self._last_sign = time.monotonic()
        self._due = None
        if self._call is not None:
            self._call.chunk_count += 1
        for line in chunk.split("\n"):
            try:
                message = json.loads(line)
                is_closing = message["method"] == "closed"
                is_next = self._is_next(message)
            except (ValueError, TypeError, KeyError) as error:
                self._report_message("parse", line, error)
                continue
            if is_next:
                self._has_closed |= is_closing
                try:
                    self._handler.handle_message(message)
                except Exception as error:
                    self._report_message("handle", line, error)

    def _is_next(self, message: Mapping[str, Any]) -> bool:
        """Whether a message is new. One without a number counts as new."""
        number: int | None = message.get(MESSAGE_NUMBER)
        if number is None:
            return True
        if number < self._next_number:
            if not message.get(REPEATED):
                place = f"{self._place}{self._next_chunk}.json"
                self._report(f"Message {number} is duplicated in {place}.")
            return False
        if number > self._next_number:
            self._report(
                f"Messages {self._next_number} to {number - 1} are missing: the next one is in "
                f"{self._place}{self._next_chunk}.json."
            )
        self._next_number = number + 1
        return True

    def _report_message(self, verb: str, line: str, error: Exception) -> None:
        self._report(
            f"Could not {verb} a message in {self._place}{self._next_chunk}.json: {error!r}. The "
            f"message begins with {line[:200]!r}."
        )

    def _report(self, text: str) -> None:
        """Record an error, which makes the call fail, and log it in the run."""
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append(text)
            self._log(text)

    def _log(self, text: str) -> None:
        try:
            raise DagsterPipesError(text)
        except DagsterPipesError:
            self._handler.report_pipes_framework_exception(
                type(self._reader).__name__, sys.exc_info()
            )


def _keep_connections(session: object) -> None:
    """Let a session keep a connection for each thread that reads, unless its pool was configured.

    By default it keeps ten to a host: with more calls in flight, it would open and close a
    connection for each request, with a warning. The session for access tokens gets the same.
    """
    if not isinstance(session, requests.Session):
        return
    # All adapters in one assignment: other threads may be making requests.
    session.adapters = {prefix: _widened(each) for prefix, each in session.adapters.items()}
    _keep_connections(getattr(session, "_auth_request_session", None))


def _widened(adapter: BaseAdapter) -> BaseAdapter:
    if type(adapter) is not HTTPAdapter or vars(adapter)["_pool_maxsize"] != DEFAULT_POOLSIZE:
        return adapter
    adapter.close()
    return HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS, max_retries=adapter.max_retries)
