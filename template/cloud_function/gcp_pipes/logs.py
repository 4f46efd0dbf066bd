"""Python's own logging, brought to Cloud Logging, and what a task logs also to Dagster.

Records belong to the request in whose context they are logged, however many are served at once. A
thread that a task starts is in that context if it is started by `contextvars.copy_context().run`.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from dagster_pipes import PipesContext

_request_fields: ContextVar[dict[str, object]] = ContextVar("_request_fields")
_current_pipes: ContextVar[PipesContext | None] = ContextVar("_current_pipes", default=None)


def configure_logging() -> None:
    """Log from INFO on, and where the function is deployed, as Cloud Logging takes it.

    That is one line of JSON a record, on standard output:
    https://cloud.google.com/logging/docs/structured-logging
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if "K_SERVICE" in os.environ:  # set by Google Cloud
        handler = _StandardOutputHandler()
        handler.setFormatter(_CloudLoggingFormatter())
        root.handlers = [handler]


@contextmanager
def log_request(trace: str) -> Iterator[None]:
    """Let Cloud Logging show what the block logs together, and with the request.

    Args:
        trace: The request's id in Cloud Trace.
    """
    project = os.environ.get("GOOGLE_CLOUD_PROJECT")
    name = f"projects/{project}/traces/{trace}" if project else trace
    token = _request_fields.set({"logging.googleapis.com/trace": name})
    try:
        yield
    finally:
        _request_fields.reset(token)


@contextmanager
def forward_logs(pipes: PipesContext) -> Iterator[None]:
    """Send what the block logs to Dagster, too, at its own level.

    From here on, the request's records for Cloud Logging carry the run's ID.

    Args:
        pipes: The Pipes context of the request.
    """
    if fields := _request_fields.get(None):
        fields["logging.googleapis.com/labels"] = {"dagster_run_id": pipes.run_id}
    handler = _ForwardingHandler(pipes)
    token = _current_pipes.set(pipes)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        _current_pipes.reset(token)


class _StandardOutputHandler(logging.StreamHandler[TextIO]):
    """Writes to what is standard output at the time.

    The Functions Framework replaces it while it serves a request, to label what is printed.
    """

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


class _CloudLoggingFormatter(logging.Formatter):
    """A record as a line of JSON, with its request's fields; a traceback is part of the message."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "severity": record.levelname,
                "message": super().format(record),
                "logger": record.name,
                **_request_fields.get({}),
            }
        )


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
