"""Python's own logging, brought to Dagster: what the task's libraries log, and their warnings."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from dagster_pipes import PipesContext

_current_pipes: ContextVar[PipesContext | None] = ContextVar("_current_pipes", default=None)


@contextmanager
def forward_logs(pipes: PipesContext) -> Iterator[None]:
    """Send what the block logs to Dagster, too, at its own level.

    Each request gets its own records, however many are served at once: they are told apart by the
    context that they are logged in. A thread that the task starts is in that context if it is
    started by `contextvars.copy_context().run`.

    Args:
        pipes: The Pipes context of the request.
    """
    handler = _ForwardingHandler(pipes)
    token = _current_pipes.set(pipes)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        _current_pipes.reset(token)


class _ForwardingHandler(logging.Handler):
    """Writes the records of one request to its Pipes context, with their tracebacks."""

    def __init__(self, pipes: PipesContext) -> None:
        super().__init__()
        self._pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        if _current_pipes.get() is self._pipes:
            # Dagster knows the five standard levels only: others count as the one below.
            level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
            self._pipes.log.log(level, "%s", self.format(record))
