"""Sends what Python logs to Cloud Logging, and what a task logs to Dagster as well."""

import json
import logging
import os
import reprlib
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from dagster_pipes import DagsterPipesError, PipesContext

from gcp_pipes.external.in_flight import Call, call_in_flight, in_flight, is_current, not_forwarded
from gcp_pipes.external.output import (
    capture_descriptors,
    drain_descriptors,
    replace_streams,
    write_to_console,
)
from gcp_pipes.protocol import LEVELS, nearest_level

_LABELS = "logging.googleapis.com/labels"

_REPR = reprlib.Repr()  # it handles a __repr__ that raises
_REPR.maxstring = _REPR.maxother = 200

_logger = logging.getLogger(__name__)
_request_fields: ContextVar[dict[str, object]] = ContextVar("_request_fields")


def configure_logging() -> None:
    """Log INFO and above in a deployed function, and warnings on a laptop.

    In a deployed function, each record is a line of JSON on standard output, as Cloud Logging
    expects: https://cloud.google.com/logging/docs/structured-logging. Python's warnings are logged,
    and so are exceptions that end a thread.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    handler = _ConsoleHandler()
    if _is_deployed():
        handler.setFormatter(_CloudLoggingFormatter())
    else:
        handler.setLevel(logging.WARNING)
    root.handlers = [handler, _DagsterHandler()]
    logging.captureWarnings(True)
    warnings.simplefilter("always", append=True)  # in every request, not only in the first
    threading.excepthook = _log_uncaught
    # The Functions Framework reads this after it has loaded the function. It would label printed
    # text, but log each argument of `print` as a record. The records here have labels already.
    os.environ["LOG_EXECUTION_ID"] = "false"
    replace_streams(_print_to_console)


@contextmanager
def log_request(trace: str, execution_id: str | None = None) -> Iterator[None]:
    """Group what the block logs with its request in Cloud Logging."""
    project = os.environ.get("GOOGLE_CLOUD_PROJECT")
    name = f"projects/{project}/traces/{trace}" if project else trace
    labels = {"execution_id": execution_id} if execution_id else {}
    token = _request_fields.set({"logging.googleapis.com/trace": name, _LABELS: labels})
    try:
        with not_forwarded():  # until the call is in flight
            yield
    finally:
        _request_fields.reset(token)


@contextmanager
def forward_logs(pipes: PipesContext, *, output: bool = True) -> Iterator[None]:
    """Send what the block logs and prints to Dagster, and Python's warnings.

    Log records keep their level. Printed text is in the compute logs of the run. The block's own
    thread is included, and threads with a copy of its context variables; and if no other call is
    in flight, everything else that this process logs and prints.

    Args:
        pipes: The Pipes context of the call.
        output: Whether to send what `print`, libraries and child processes write to standard output
            and standard error.
    """
    fields = _request_fields.get({})
    fields[_LABELS] = {**fields.get(_LABELS, {}), "dagster_run_id": pipes.run_id}  # type: ignore[dict-item]
    call = Call(pipes, output, fields)
    with in_flight(call):
        if output:
            capture_descriptors()
        try:
            yield
        finally:
            if output:
                drain_descriptors()
            for stream, line in call.end_lines():
                _print_to_console(stream, line)


def prepare_for_dagster(record: logging.LogRecord) -> bool:
    """Give a record a level that Dagster has, and include its traceback in the message."""
    record.levelno = nearest_level(record.levelno)
    record.levelname = LEVELS[record.levelno]  # libraries may have renamed the level
    record.msg, record.args = _text(record, logging.Formatter().format), ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True


def _text(record: logging.LogRecord, format_record: Callable[[logging.LogRecord], str]) -> str:
    try:
        return format_record(record)
    except Exception as error:
        problem = traceback.format_exception_only(error)[-1].strip()
        return (
            f"A log record could not be formatted: {_REPR.repr(record.msg)} with the arguments "
            f"{_REPR.repr(record.args)}: {problem}"
        )


def _is_deployed() -> bool:
    return bool(os.environ.get("K_SERVICE") or os.environ.get("CLOUD_RUN_JOB"))  # Google Cloud's


def _log_uncaught(failed: threading.ExceptHookArgs) -> None:
    """Log the exception that ended a thread. By default, Python prints it, except SystemExit."""
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        name = failed.thread.name if failed.thread else "unknown"
        _logger.error(f"An exception ended the thread {name}.", exc_info=failed.exc_value)


class _ConsoleHandler(logging.Handler):
    """Writes to the function's own standard output, which is not forwarded to Dagster."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_to_console("stdout" if _is_deployed() else "stderr", f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)


class _CloudLoggingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = _text(record, super().format)
        return _structured(record.levelname, text, logger=record.name)


class _DagsterHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if call := call_in_flight():
            try:
                call.pipes.log.log(max(record.levelno, 1), "%s", _text(record, self.format))
            except DagsterPipesError:  # messages cannot be stored, or the call has ended
                if is_current(call):
                    raise


def _print_to_console(stream: str, text: str) -> None:
    """Write what a task printed to the function's own log, with the fields of its request."""
    if _is_deployed():
        text = "".join(f"{_structured('DEFAULT', line)}\n" for line in text.splitlines())
    write_to_console(stream, text)


def _structured(severity: str, message: str, **more: str) -> str:
    """A line of JSON for Cloud Logging."""
    if (fields := _request_fields.get(None)) is None:  # in a thread that a task started
        call = call_in_flight()
        fields = call.log_fields if call else {}
    return json.dumps({"severity": severity, "message": message, **more, **fields})
