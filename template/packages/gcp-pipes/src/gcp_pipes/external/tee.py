"""Copies what is written to two pipes to the original outputs, and to the function's process.

`output.py` starts it as a process. With a thread instead, a library that holds Python's lock while
it fills a pipe would deadlock, and the last output of a process that crashes would be lost.
"""

import json
import os
import selectors
import signal
import struct
import sys
from contextlib import suppress

HEADER = struct.Struct("!BI")
"""Precedes each piece of output: its file descriptor, 1 or 2, and its size in bytes."""

EVERYTHING_COPIED = HEADER.pack(0, 0)
"""The response to a request: everything that was written before it has been copied."""

_SIZE = 65_536  # bytes of one read


def main(sources: dict[int, tuple[int, int]], requests: int, copies: int) -> None:
    """Copy until the write ends of all sources are closed.

    `sources` has, for the read end of each pipe, the original output, and 1 or 2.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the writers may write more
        signal.signal(number, signal.SIG_IGN)
    pending = bytearray()  # copies that the function's process has not read yet
    with selectors.DefaultSelector() as selector:
        for descriptor in (requests, copies, *sources):
            os.set_blocking(descriptor, False)
        for descriptor in (requests, *sources):
            selector.register(descriptor, selectors.EVENT_READ)
        while sources:
            ready = {key.fd for key, _ in selector.select()}
            count = len(_read(requests) or b"") if requests in ready else 0
            if requests in ready and not count:
                selector.unregister(requests)
            for source in [*sources]:
                if not _copy(source, *sources[source], pending):
                    selector.unregister(source)
                    del sources[source]
            pending += EVERYTHING_COPIED * count
            _send(pending, copies)
            if copies in selector.get_map():
                selector.unregister(copies)
            if pending:
                selector.register(copies, selectors.EVENT_WRITE)


def _copy(source: int, original: int, number: int, pending: bytearray) -> bool:
    """Copy what is available; return False at the end of the pipe."""
    while data := _read(source):
        _write(original, data)
        pending += HEADER.pack(number, len(data)) + data
    return data is None


def _read(descriptor: int) -> bytes | None:
    """What is available: None if there is nothing, no bytes at the end of the pipe."""
    try:
        return os.read(descriptor, _SIZE)
    except BlockingIOError:
        return None


def _write(descriptor: int, data: bytes) -> None:
    """Write everything, unless the reader is gone."""
    with suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _send(pending: bytearray, copies: int) -> None:
    """Write as much as fits into the pipe; drop everything if the reader is gone."""
    try:
        while pending:
            del pending[: os.write(copies, pending[:_SIZE])]
    except BlockingIOError:
        pass
    except OSError:
        pending.clear()


if __name__ == "__main__":
    _sources, _requests, _copies = json.loads(sys.argv[1])
    main({source: (original, number) for source, original, number in _sources}, _requests, _copies)
