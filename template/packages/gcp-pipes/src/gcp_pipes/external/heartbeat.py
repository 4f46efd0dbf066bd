"""Stores heartbeats for the calls in flight, which show Dagster that the function is alive.

It is a separate program, started by `liveness.py`. A thread of the function could not do this:
native code that holds the GIL stops all threads, and for Dagster, a call that works would be dead.

The function sends JSON objects, one a line: updates of a call, which has an `id`. The
program answers with `{"id": ...}` if Dagster has cancelled the call.
"""

import functools
import json
import os
import select
import signal
import ssl
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

_BODY = (  # of a multipart upload: the object's metadata, and its content, which is empty
    b"--part\r\nContent-Type: application/json\r\n\r\n%s\r\n"
    b"--part\r\nContent-Type: text/plain\r\n\r\n\r\n--part--\r\n"
)
_RETRY_INTERVAL = 1.0  # seconds, after a heartbeat that could not be stored


class _Call(threading.Thread):
    """Stores the heartbeats of one call, each as an empty object with the next number."""

    def __init__(self, call: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._id: int = call["id"]
        self._url: str = call["url"]
        self._name: str = call["name"]
        self._interval: float = call["interval"]
        self._trusted: str = call["trusted"]
        self._number = 1
        self._is_resumed: bool = call["is_resumed"]  # a killed process has stored others before
        self._may_be_stored = self._is_resumed  # the next one
        self._is_cancelled = False
        self._has_ended = threading.Event()
        self._due = 0.0
        self.headers: dict[str, str] = {}
        self.postpone()

    def start_if_due(self) -> None:
        """Start the thread with the first heartbeat. Most calls end before."""
        if self.seconds_left <= 0 and not self.is_alive():
            self.start()

    @property
    def seconds_left(self) -> float:
        """The seconds until the next heartbeat is due."""
        return max(self._due - time.monotonic(), 0.0)

    def postpone(self) -> None:
        """Wait, since the function has just stored messages, which show the same."""
        self._due = time.monotonic() + self._interval

    def end(self) -> None:
        """Store no further heartbeat."""
        self._has_ended.set()

    def run(self) -> None:
        """Store heartbeats until the call or the function has ended."""
        while not self._has_ended.wait(self.seconds_left):
            if self.seconds_left == 0:  # it may have been postponed
                self._beat()

    def _beat(self) -> None:
        if os.getppid() != _FUNCTION:  # it has ended, and a child of it keeps the pipe open
            os._exit(0)
        try:
            self._store()
        except HTTPError as error:
            if error.code != 412 and not _exists(error):
                self._may_be_stored |= error.code >= 500
                self._due = time.monotonic() + min(_RETRY_INTERVAL, self._interval)
                return
            self._due = 0.0  # the name is taken: store the next one at once
            self._number += 1
            if not (self._may_be_stored or self._is_cancelled):
                self._is_cancelled = True
                sys.stdout.write(json.dumps({"id": self._id}) + "\n")
                sys.stdout.flush()
            self._may_be_stored &= self._is_resumed  # the names of a killed process are several
        except OSError:
            self._may_be_stored = True
            self._due = time.monotonic() + min(_RETRY_INTERVAL, self._interval)
        else:
            self.postpone()
            self._number += 1
            self._may_be_stored = self._is_resumed = False

    def _store(self) -> None:
        request = urllib.request.Request(  # noqa: S310  # the URL of Cloud Storage
            self._url,
            data=_BODY % json.dumps({"name": f"{self._name}{self._number}"}).encode(),
            headers={**self.headers, "Content-Type": "multipart/related; boundary=part"},
            method="POST",
        )
        tls = _tls(self._trusted)
        urllib.request.urlopen(request, timeout=self._interval, context=tls).close()  # noqa: S310


@functools.cache  # it takes long, and most calls end before their first heartbeat
def _tls(trusted: str) -> ssl.SSLContext:
    if Path(trusted).is_dir():
        return ssl.create_default_context(capath=trusted)
    return ssl.create_default_context(cafile=trusted)


def _exists(error: HTTPError) -> bool:
    """Whether a 403 says that the object exists, as for a chunk in `storage.py`."""
    text = error.read().decode(errors="replace")
    rights = ("storage.objects.delete", "storage.objects.get")
    return error.code == 403 and any(right in text for right in rights)


def main() -> None:
    """Follow what the function sends, until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # calls may still be in flight
        signal.signal(number, signal.SIG_IGN)
    calls: dict[int, _Call] = {}
    rest = b""
    while True:
        waiting = [each.seconds_left for each in calls.values() if not each.is_alive()]
        if select.select([sys.stdin], [], [], min(waiting, default=None))[0]:
            received = os.read(sys.stdin.fileno(), 65_536)
            if not received:
                return
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                _follow(json.loads(line), calls)
        for call in calls.values():
            call.start_if_due()


def _follow(update: dict[str, Any], calls: dict[int, _Call]) -> None:
    """Apply what the function has sent about a call."""
    number: int = update["id"]
    if "url" in update:
        calls[number] = _Call(update)
    if call := calls.get(number):
        call.headers = update.get("headers", call.headers)
        if update.get("stored"):
            call.postpone()
        if update.get("ended"):
            calls.pop(number).end()


if __name__ == "__main__":
    _FUNCTION = os.getppid()
    main()
