"""Copies the output that the function writes to two pipes to its original place, and back to it.

It is a separate program, started by `output.py`. A thread of the function could not do this: a
library that fills a pipe while it holds the GIL would wait forever for that thread. A separate
process also copies what the function wrote just before it crashed.
"""

import json
import os
import selectors
import signal
import struct
import sys
from contextlib import suppress

HEADER = struct.Struct("!BI")
"""Before each piece of output: its file descriptor, 1 or 2, and its size in bytes."""

END_OF_ROUND = HEADER.pack(0, 0)
"""After all output of a round. The function then takes one byte out of the pipe `under_way`."""

_SIZE = 65_536  # bytes read at once


def main(sources: dict[int, tuple[int, int]], under_way: int, copies: int) -> None:
    """Copy in rounds until all writers have closed the pipes.

    The pipe `under_way` is not empty from before output is read until the function has received it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # processes may still write after them
        signal.signal(number, signal.SIG_IGN)
    pending = bytearray()  # copies that the function has not read yet
    with selectors.DefaultSelector() as selector:
        for descriptor in (under_way, copies, *sources):
            os.set_blocking(descriptor, False)
        for source in sources:
            selector.register(source, selectors.EVENT_READ)
        while sources:
            ready = [key.fd for key, _ in selector.select() if key.fd in sources]
            announced = bool(ready) and _announce(under_way)
            for source in ready:
                if not _copy(source, *sources[source], pending):
                    selector.unregister(source)
                    del sources[source]
            if announced:
                pending += END_OF_ROUND
            _send(pending, copies)
            if copies in selector.get_map():
                selector.unregister(copies)
            if pending:
                selector.register(copies, selectors.EVENT_WRITE)


def _announce(under_way: int) -> bool:
    """Say that output is under way, unless enough earlier output is."""
    with suppress(OSError):  # the pipe is full, or the function has ended
        return bool(os.write(under_way, b"."))
    return False


def _copy(source: int, original: int, number: int, pending: bytearray) -> bool:
    """Copy what can be read now. Return False if the pipe was closed."""
    while data := _read(source):
        with suppress(OSError):  # nothing reads the original any more
            rest = data
            while rest:
                rest = rest[os.write(original, rest) :]
        pending += HEADER.pack(number, len(data)) + data
    return data is None


def _read(descriptor: int) -> bytes | None:
    """Read what is available: None if there is nothing yet, no bytes at the end."""
    try:
        return os.read(descriptor, _SIZE)
    except BlockingIOError:
        return None


def _send(pending: bytearray, copies: int) -> None:
    """Write what fits into the pipe now. Drop everything if the function has ended."""
    try:
        while pending:
            del pending[: os.write(copies, pending[:_SIZE])]
    except BlockingIOError:
        pass
    except OSError:
        pending.clear()


if __name__ == "__main__":
    _sources, _under_way, _copies = json.loads(sys.argv[1])
    main({source: (original, number) for source, original, number in _sources}, _under_way, _copies)
