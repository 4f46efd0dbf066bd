"""A task that holds a lock of the logging module most of the time."""

import logging
import threading
import time

from dagster_pipes import PipesContext

from gcp_pipes.external import Event

locked = threading.Lock()


class SlowLock:
    """A lock that an exception leaves locked while it is acquired or released."""

    def acquire(self) -> None:
        """Lock, and take a while."""
        locked.acquire()
        time.sleep(0.05)

    def release(self) -> None:
        """Take a while, and unlock."""
        time.sleep(0.05)
        locked.release()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        """As `release`."""
        self.release()


def run(pipes: PipesContext, event: Event) -> None:
    """Log until the task is stopped."""
    handler = logging.NullHandler()
    handler.lock = SlowLock()  # type: ignore[assignment]
    while True:
        handler.acquire()
        handler.release()
        time.sleep(0.05)
