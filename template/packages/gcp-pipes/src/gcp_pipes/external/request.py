"""From an HTTP request to a Pipes context, and from an error to an HTTP response."""

import functools
import logging
import re
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flask
from dagster_pipes import (
    DagsterPipesError,
    PipesDefaultContextLoader,
    PipesMappingParamsLoader,
    PipesMessageWriter,
)
from werkzeug.exceptions import BadRequest

from gcp_pipes.external.context import PipesCloudFunctionContext
from gcp_pipes.external.deadline import function_is_ready, request_handled
from gcp_pipes.external.logs import log_request
from gcp_pipes.external.message_writer import MessagesNotStoredError

_TRACE_HEADERS = {  # each with the form of its value
    "traceparent": r"[0-9a-f]{2}-([0-9a-f]{32})-",
    "X-Cloud-Trace-Context": r"([0-9a-f]{32})(/|$)",
}

_logger = logging.getLogger(__name__)

Event = Mapping[str, Any]
"""The body of a request: the inputs of the task, beside the two parameters of Pipes."""

Handler = Callable[[flask.Request], flask.typing.ResponseReturnValue]

_CALLER = "This function is called by a Dagster asset, through PipesCloudFunctionClient."


def read_event(request: flask.Request) -> Event:
    """The request's body as a JSON object.

    Args:
        request: The request. Its content type does not matter.

    Raises:
        BadRequest: The body is anything else.
    """
    event = request.get_json(force=True, silent=True)
    if not isinstance(event, dict):
        raise BadRequest(f"The request body must be a JSON object. {_CALLER}")
    return event


def event_input(event: Event, name: str) -> Any:
    """The value of the input `name`.

    Args:
        event: The request's body.
        name: The input's name, as it is in the `event` of the asset.

    Raises:
        BadRequest: The event has no such input.
    """
    if name not in event:
        raise BadRequest(f"The event lacks the input {name!r}. Add it to `event` in the asset.")
    return event[name]


def open_pipes(
    event: Event, *, message_writer: PipesMessageWriter[Any]
) -> PipesCloudFunctionContext:
    """Open the Pipes context of one request; use it in a `with` block.

    Unlike `dagster_pipes.open_dagster_pipes`, this leaves no trace in the process: each request has
    a context of its own, however many are served at once.

    Args:
        event: The request's body, with the parameters that the Pipes client added.
        message_writer: Takes the messages to Dagster.

    Raises:
        BadRequest: The event does not come from a Pipes client, or from one that uses a different
            kind of message reader or another bucket.
        MessagesNotStoredError: The first message could not be stored.
    """
    params_loader = PipesMappingParamsLoader(event)
    try:
        return PipesCloudFunctionContext(params_loader, PipesDefaultContextLoader(), message_writer)
    except MessagesNotStoredError:
        raise
    except KeyError as error:
        raise BadRequest(f"The event lacks {error}. {_CALLER}") from error
    except (TypeError, AttributeError, ValueError, zlib.error, DagsterPipesError) as error:
        raise BadRequest(
            f"The event's Pipes parameters are unusable ({error}). {_CALLER}"
        ) from error


def trace_id(request: flask.Request) -> str:
    """The request's id in Cloud Trace and Cloud Logging, or `local` where there is none.

    Google's front end sends it as `traceparent` (`00-TRACE-SPAN-FLAGS`, W3C Trace Context) and as
    `X-Cloud-Trace-Context` (`TRACE/SPAN;o=OPTIONS`).

    Args:
        request: The request, with its headers.
    """
    for header, form in _TRACE_HEADERS.items():
        if match := re.match(form, request.headers.get(header, "")):
            return match[1]
    return "local"


def answer_errors_as_json(handler: Handler) -> Handler:
    """Answer 400 for a bad request and 500 for any other error, with `{"error": ...}` as the body.

    How a request ended is logged, with the traceback of an unexpected error, and with nothing else
    of what the request was about. Dagster has the traceback too if the error left the `with` block
    of a Pipes context.

    Args:
        handler: Answers a request, or raises an error.
    """
    function_is_ready()

    @functools.wraps(handler)
    def answer(request: flask.Request) -> flask.typing.ResponseReturnValue:
        started = time.monotonic()
        execution_id = request.headers.get("Function-Execution-Id")
        with request_handled(), log_request(trace_id(request), execution_id):
            _logger.info("The request has begun")
            try:
                response = handler(request)
            except BadRequest as error:
                _logger.warning("The request was refused: the answer says why")
                return {"error": error.description}, 400
            except BaseException as error:  # a SystemExit, too, would end the server
                _logger.exception("The request failed after %.3f s", time.monotonic() - started)
                return {"error": _in_words(error)}, 500
            _logger.info("The request succeeded after %.3f s", time.monotonic() - started)
            return response

    return answer


def _in_words(error: BaseException) -> str:
    """The name of the error's class, and its text, even where that cannot be made."""
    text = "".join(traceback.format_exception_only(error)).strip()
    return text.removeprefix(f"{type(error).__module__}.")
