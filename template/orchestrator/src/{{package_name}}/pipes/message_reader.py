"""Reads Pipes messages from a Cloud Storage bucket, where the cloud function writes them.

The layout is that of `dagster_pipes.PipesBlobStoreMessageWriter`: chunks `<key_prefix>/1.json`,
`<key_prefix>/2.json` and so on, each with one JSON message a line. Where messages have a `number`,
as those of `gcp_pipes` have, it tells whether any is missing or came twice.
"""

import copy
import json
import re
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import dagster as dg
import requests
from dagster_pipes import DagsterPipesError, PipesParams
from google.api_core.exceptions import NotFound
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import DEFAULT_POOLSIZE, BaseAdapter, HTTPAdapter

from .message_handler import CloudFunctionMessageHandler

_ATTEMPT_TIMEOUT = 30.0  # seconds without an answer from Cloud Storage
_RETRY = DEFAULT_RETRY.with_timeout(30.0).with_delay(initial=0.1, maximum=5.0)  # in seconds
_FIRST_INTERVAL = 0.005  # seconds, doubled with every look until it is the interval asked for
_INTERVAL_OF_EACH = 0.1  # seconds, for each of many calls at once: so there are ten looks a second
_MOST_CONNECTIONS = 1_000  # kept to Cloud Storage: one for each of as many calls at once
_LONGEST_INTERVAL = 30.0  # seconds, however many they are
_PROBLEMS_TOLD = 10  # of one call: what is wrong with one message is often wrong with all


class PipesCloudStorageMessageReader(dg.PipesMessageReader):
    """Brings the messages of a cloud function into a Dagster run.

    One reader serves any number of calls, in turn or at once: each reads under a key prefix of its
    own, in a thread of its own. Reading takes `roles/storage.objectViewer` on the bucket, no more:
    `storage.objects.get`, and `storage.objects.list`, without which Cloud Storage answers 403 and
    not 404 for a chunk that is not there yet.

    Args:
        bucket: Name of the bucket that the function writes messages to, without `gs://`.
        client: The Cloud Storage client to read with. It keeps its connections until it is closed.
        interval: Longest time, in seconds, between two looks for the next chunk while the function
            runs. When the call has returned, what is left is read without any wait.
    """

    def __init__(self, *, bucket: str, client: storage.Client, interval: float = 0.5) -> None:
        self.bucket = bucket
        self.client = client
        self.interval = interval
        self.first_interval = min(_FIRST_INTERVAL, interval)
        _keep_connections(client._http)  # it has no public name, and is how Google's guides do this

    def for_many_calls(self, count: int) -> Self:
        """The same reader, for calls that look less often the more of them there are at once.

        For a short call, it makes no more requests than there are chunks.

        Args:
            count: How many calls there are at once.
        """
        reader = copy.copy(self)
        reader.interval = max(self.interval, min(count * _INTERVAL_OF_EACH, _LONGEST_INTERVAL))
        reader.first_interval = reader.interval / 2
        return reader

    @property
    def expected_writer_count(self) -> int:
        """One: a call runs one function. The base class says so too, but warns each time."""
        return 1

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        """Read in the background while the block runs; all is read when the block is left.

        What is wrong with the messages is reported to the run at once, and all that can be read is
        read nevertheless.

        Args:
            handler: Takes the messages, in the order in which they were written.

        Yields:
            What the message writer needs to know: `bucket` and `key_prefix`.

        Raises:
            DagsterPipesError: Messages are missing, came twice, or could not be read or understood.
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
        if reading.problems:
            raise DagsterPipesError("\n".join(reading.problems))

    def get_params(self) -> PipesParams:
        """A place for the messages of one call: the bucket, and a key prefix never used before."""
        return {"bucket": self.bucket, "key_prefix": uuid.uuid4().hex}

    def download_messages_chunk(self, index: int, params: PipesParams) -> str | None:
        """The chunk's text, or None if there is no such chunk (yet).

        Transient failures are retried, for up to half a minute.

        Args:
            index: The chunk's number, from 1.
            params: What `get_params` returned for this call.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage refused the download.
            google.api_core.exceptions.RetryError: It failed until the time limit was reached.
            UnicodeDecodeError: The chunk is no text.
        """
        blob = self.client.bucket(params["bucket"]).blob(f"{params['key_prefix']}/{index}.json")
        try:
            chunk: bytes = blob.download_as_bytes(timeout=_ATTEMPT_TIMEOUT, retry=_RETRY)
        except NotFound:
            return None
        return chunk.decode()

    def list_messages_chunks(self, params: PipesParams) -> list[int]:
        """The numbers of all chunks that there are.

        Args:
            params: What `get_params` returned for this call.

        Raises:
            google.api_core.exceptions.GoogleAPICallError: Cloud Storage refused to list them.
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
        self._place = f"gs://{params['bucket']}/{params['key_prefix']}/"
        self._next_chunk = 1
        self._next_number = 1
        self._has_closed = False
        self.call_has_returned = threading.Event()
        self.problems: list[str] = []

    def read(self) -> None:
        """Hand over chunk after chunk until the function has closed, or nothing more can come."""
        is_last_look = False
        told_of_failure = False
        interval = self._reader.first_interval
        while not (self._has_closed or is_last_look):
            is_last_look = self.call_has_returned.wait(interval)
            interval = min(2 * interval, self._reader.interval)
            try:
                self._read_what_is_there()
                if is_last_look and not self._has_closed:
                    self._read_beyond_gaps()
            except Exception as error:
                problem = (
                    f"{self._place}{self._next_chunk}.json could not be read: {error}. Dagster "
                    "needs roles/storage.objectViewer on the bucket."
                )
                if is_last_look:
                    self._report(problem)
                elif not told_of_failure:  # it may yet go well: someone may grant what is missing
                    self._tell(problem)
                    told_of_failure = True

    def _read_what_is_there(self) -> None:
        while not self._has_closed:
            try:
                chunk = self._reader.download_messages_chunk(self._next_chunk, self._params)
            except UnicodeDecodeError as error:
                self._report(f"{self._place}{self._next_chunk}.json is no text: {error}.")
            else:
                if chunk is None:
                    return
                self._hand_over(chunk)
            self._next_chunk += 1

    def _read_beyond_gaps(self) -> None:
        for index in self._reader.list_messages_chunks(self._params):
            if index > self._next_chunk:
                self._report(f"{self._place}{self._next_chunk}.json is missing.")
                self._next_chunk = index
                self._read_what_is_there()

    def _hand_over(self, chunk: str) -> None:
        if isinstance(self._handler, CloudFunctionMessageHandler):
            self._handler.chunk_count += 1
        for line in chunk.split("\n"):
            try:
                message = json.loads(line)
                is_closing = message["method"] == "closed"
                is_next = self._is_next(message.get("number"))
            except (ValueError, TypeError, KeyError) as error:
                self._report_message(line, "could not be parsed", error)
                continue
            if is_next:
                self._has_closed |= is_closing
                try:
                    self._handler.handle_message(message)
                except Exception as error:
                    self._report_message(line, "could not be handled", error)

    def _is_next(self, number: int | None) -> bool:
        """Whether a message is new. One without a number is taken as it comes."""
        if number is None:
            return True
        if number < self._next_number:
            self._report(f"Message {number} came twice, in {self._place}{self._next_chunk}.json.")
            return False
        if number > self._next_number:
            self._report(
                f"Messages {self._next_number} to {number - 1} are missing: the next one is in "
                f"{self._place}{self._next_chunk}.json."
            )
        self._next_number = number + 1
        return True

    def _report_message(self, line: str, what_happened: str, error: Exception) -> None:
        self._report(
            f"A message in {self._place}{self._next_chunk}.json {what_happened}: {error!r}. It "
            f"begins with {line[:200]!r}."
        )

    def _report(self, problem: str) -> None:
        """Make the call fail because of `problem`, and say so in the run at once."""
        if len(self.problems) < _PROBLEMS_TOLD:
            self.problems.append(problem)
            self._tell(problem)

    def _tell(self, problem: str) -> None:
        try:
            raise DagsterPipesError(problem)
        except DagsterPipesError:
            self._handler.report_pipes_framework_exception(
                type(self._reader).__name__, sys.exc_info()
            )


def _keep_connections(session: object) -> None:
    """Let a session keep a connection for each thread that reads, where its makers chose no number.

    By default it keeps ten to a host: with more calls at once, it would open and close a connection
    for each read, and warn each time that its pool is full. So it is for requests of access tokens.

    Args:
        session: What a Cloud Storage client makes its requests with.
    """
    if not isinstance(session, requests.Session):
        return
    # All adapters at once: other threads may be making requests.
    session.adapters = {prefix: _widened(each) for prefix, each in session.adapters.items()}
    _keep_connections(getattr(session, "_auth_request_session", None))


def _widened(adapter: BaseAdapter) -> BaseAdapter:
    if type(adapter) is not HTTPAdapter or vars(adapter)["_pool_maxsize"] != DEFAULT_POOLSIZE:
        return adapter
    adapter.close()
    return HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS, max_retries=adapter.max_retries)
