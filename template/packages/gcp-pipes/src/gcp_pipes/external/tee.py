"""Copies what is written to two pipes to where it led before, and to the function's process.

It is a program of its own, started by `output.py`. A thread of the function could not do this: a
library that holds Python's lock while it fills a pipe would wait for that thread for ever. And what
a process writes just before it crashes is copied nevertheless.
"""

import json
import os
import selectors
import signal
import struct
import sys
from contextlib import suppress

HEADER = struct.Struct("!BI")
"""What comes before each piece of output: its file descriptor, 1 or 2, and its size in bytes."""

EVERYTHING_COPIED = HEADER.pack(0, 0)
"""Sent when all that was written before it was asked for has been copied."""

_SIZE = 65_536  # bytes read at once


def main(sources: dict[int, tuple[int, int]], requests: int, copies: int) -> None:
    """Copy until nothing can be written to the sources any more.

    Args:
        sources: By the end of a pipe to read: where its output led before, and 1 or 2.
        requests: Each byte that can be read from it is a request for `EVERYTHING_COPIED`.
        copies: Takes the copies.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the writers may have more to say
        signal.signal(number, signal.SIG_IGN)
    pending = bytearray()  # copies that wait for their reader, which may be slow
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
    """Copy what there is now; return whether there may be more, at some time."""
    while data := _read(source):
        _write(original, data)
        pending += HEADER.pack(number, len(data)) + data
    return data is None


def _read(descriptor: int) -> bytes | None:
    """What can be read: None if there is nothing now, no bytes if there never will be."""
    try:
        return os.read(descriptor, _SIZE)
    except BlockingIOError:
        return None


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it, unless its reader has ended."""
    with suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _send(pending: bytearray, copies: int) -> None:
    """Write as much as the pipe takes now; nothing is pending once its reader has ended."""
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
