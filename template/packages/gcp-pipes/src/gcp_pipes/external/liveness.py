"""Shows Dagster that a call is alive while its task runs, and learns that it was cancelled.

If a call has stored no messages for an interval, an empty object is stored under its key prefix:
`heartbeats/1`, `heartbeats/2` and so on. So Dagster knows soon that a function has died, and a task
that is silent learns that Dagster has cancelled its call: the name of the next heartbeat is taken.

`heartbeat.py`, a process of its own, stores them. It starts with the first call, and ends with this
process.
"""

import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.cloud import storage
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from gcp_pipes.protocol import heartbeat_name

_RENEWAL = 60.0  # seconds
_MOST_UPDATES = 10  # in an interval, which say that messages were stored

_logger = logging.getLogger(__name__)


class Heartbeat:
    """The heartbeat of one call.

    Args:
        client: The Cloud Storage client, whose credentials are used.
        bucket: Name of the bucket, without `gs://`.
        key_prefix: The key prefix of the call's messages.
        interval: Seconds without messages after which a heartbeat is stored.
        on_cancelled: Called when the call was cancelled, in a thread of its own.

    Attributes:
        has_started: Whether heartbeats are stored.
    """

    def __init__(
        self,
        client: storage.Client,
        bucket: str,
        key_prefix: str | None,
        *,
        interval: float,
        on_cancelled: Callable[[], None],
    ) -> None:
        self._client = client
        self.on_cancelled = on_cancelled
        self.has_started = False
        self._id = next(_ids)
        self._interval = interval
        self._renewed = self._updated = time.monotonic()
        self.description: dict[str, Any] = {
            "url": f"{_api(client)}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
            "?uploadType=multipart&ifGenerationMatch=0&fields=name",
            "name": heartbeat_name(key_prefix, ""),
            "interval": interval,
            "trusted": os.environ.get("REQUESTS_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH,
        }

    def start(self) -> None:
        """Store heartbeats from now on."""
        try:
            _process.add(self._id, self)
            self.has_started = True
        except OSError as error:
            _logger.warning(f"Dagster cannot see whether this call is alive: {error}")

    def messages_stored(self) -> None:
        """Postpone the next heartbeat, since messages show the same."""
        if time.monotonic() - self._updated > self._interval / _MOST_UPDATES:
            self._updated = time.monotonic()
            _process.send(self._id, stored=True)

    def maintain(self) -> None:
        """Once a minute, or if the process was killed, send it credentials that are valid now."""
        if time.monotonic() - self._renewed > _RENEWAL or not _process.is_running():
            self._renewed = time.monotonic()
            _process.send(self._id, headers=self.headers())

    def stop(self) -> None:
        """Store no further heartbeat."""
        _process.remove(self._id)

    def headers(self) -> dict[str, str]:
        """The headers of a request, with an access token."""
        headers: dict[str, str] = {}
        with suppress(GoogleAuthError):  # storing the messages reports it
            self._client._credentials.before_request(
                Request(), "POST", self.description["url"], headers
            )
        return headers


class _HeartbeatProcess:
    """The process `heartbeat.py`, and the pipes to it and from it. It is started when needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the attributes below
        self._process: subprocess.Popen[str] | None = None
        self._calls: dict[int, Heartbeat] = {}

    def add(self, number: int, call: Heartbeat) -> None:
        """Let the process store the heartbeats of a call."""
        headers = call.headers()
        with self._lock:
            self._send_call(number, call, headers, is_resumed=False)
            self._calls[number] = call

    def send(self, number: int, **update: object) -> None:
        """Send the process an update of a call."""
        with self._lock, suppress(OSError):
            self._send({"id": number, **update})

    def remove(self, number: int) -> None:
        """Let the process forget a call."""
        with self._lock, suppress(OSError):
            if self._calls.pop(number, None):
                self._send({"id": number, "ended": True})

    def is_running(self) -> bool:
        """Whether the process runs."""
        process = self._process
        return process is not None and process.poll() is None

    def _send(self, update: dict[str, object]) -> None:
        if not self.is_running():
            self._start()
        assert self._process is not None and self._process.stdin is not None  # noqa: S101, PT018
        self._process.stdin.write(json.dumps(update) + "\n")
        self._process.stdin.flush()

    def _start(self) -> None:
        program = [sys.executable, "-IS", str(Path(__file__).with_name("heartbeat.py"))]
        process = subprocess.Popen(  # noqa: S603  # a file of this package
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._process = process
        threading.Thread(
            target=self._receive, args=(process,), name="pipes-heartbeat", daemon=True
        ).start()
        for number, call in self._calls.items():
            self._send_call(number, call, call.headers(), is_resumed=True)

    def _send_call(
        self, number: int, call: Heartbeat, headers: dict[str, str], *, is_resumed: bool
    ) -> None:
        update = {"id": number, **call.description, "headers": headers, "is_resumed": is_resumed}
        self._send(update)

    def _receive(self, process: "subprocess.Popen[str]") -> None:
        """Pass on which calls were cancelled, until the process ends."""
        assert process.stdout is not None  # noqa: S101
        with process.stdout:
            for line in process.stdout:
                with self._lock:
                    call = self._calls.get(json.loads(line)["id"])
                if call is not None:
                    call.on_cancelled()


_ids = itertools.count()
_process = _HeartbeatProcess()


def _api(client: storage.Client) -> str:
    """The address of the Cloud Storage API that the client uses."""
    endpoint: str = client._connection.get_api_base_url_for_mtls()
    return endpoint.rstrip("/")
