"""Reads requests, opens their Pipes contexts, and turns errors into responses."""

import functools
import json
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
from werkzeug.exceptions import BadRequest, Conflict

from gcp_pipes.external.context import PipesCloudFunctionContext
from gcp_pipes.external.deadline import request_timer, set_ready
from gcp_pipes.external.logs import log_request
from gcp_pipes.external.message_writer import (
    MessagesNotStoredError,
    NotStartedError,
    PipesCloudStorageMessageWriter,
)
from gcp_pipes.external.shutdown import is_ending
from gcp_pipes.protocol import (
    PROTOCOL_VERSION,
    REPLACES_PARAMETER,
    VERSION_PARAMETER,
    explain_versions,
)

_TRACE_HEADERS = {  # and the pattern of their values
    "traceparent": r"[0-9a-f]{2}-([0-9a-f]{32})-",
    "X-Cloud-Trace-Context": r"([0-9a-f]{32})(/|$)",
}

_logger = logging.getLogger(__name__)

Event = Mapping[str, Any]
"""The body of a request: the inputs of the task, and the parameters of Pipes."""

Handler = Callable[[flask.Request], flask.typing.ResponseReturnValue]

_CALLER = "This function is called by a Dagster asset, through PipesCloudFunctionClient."


class WrongVersionError(BadRequest):
    """This code is older or newer than the definition of the call. It has done nothing."""

    def __str__(self) -> str:
        """The error without the status, since Dagster shows it also for a job."""
        return str(self.description)


def read_event(request: flask.Request) -> Event:
    """Read the request's body as a JSON object.

    Args:
        request: The request. Its content type is ignored.

    Raises:
        BadRequest: The body is not a JSON object.
    """
    event = request.get_json(force=True, silent=True)
    if not isinstance(event, dict):
        raise BadRequest(f"The request body must be a JSON object. {_CALLER}")
    return event


def event_input(event: Event, name: str) -> Any:
    """The value of an input.

    Args:
        event: The request's body.
        name: The input's name, as in the `event` of the asset.

    Raises:
        BadRequest: The event lacks the input.
    """
    if name not in event:
        raise BadRequest(f"The event lacks the input {name!r}. Add it to `event` in the asset.")
    return event[name]


def open_pipes(
    event: Event, *, message_writer: PipesMessageWriter[Any]
) -> PipesCloudFunctionContext:
    """Open the Pipes context of a request, for use in a `with` block.

    Unlike `dagster_pipes.open_dagster_pipes`, it has no global state, so an instance can handle
    several requests at the same time.

    Args:
        event: The request's body, with the parameters that the Pipes client added. Elsewhere than
            in a function, `os.environ`.
        message_writer: Writes the messages to Dagster.

    Raises:
        BadRequest: The parameters of Pipes are missing or invalid, or require another kind of
            message writer or another bucket.
        Conflict: An earlier attempt of this call has started.
        MessagesNotStoredError: The first message could not be stored.
        NotStartedError: A retry may have replaced this attempt.
        WrongVersionError: Dagster has another version of the protocol. It learns of that, too.
    """
    params_loader = PipesMappingParamsLoader(event)
    try:
        dagster_version = int(event.get(VERSION_PARAMETER, PROTOCOL_VERSION))
        if REPLACES_PARAMETER in event and isinstance(
            message_writer, PipesCloudStorageMessageWriter
        ):
            replaces = event[REPLACES_PARAMETER]
            message_writer.block(
                params_loader.load_messages_params(),
                json.loads(replaces) if isinstance(replaces, str) else replaces,
            )
        pipes = PipesCloudFunctionContext(
            params_loader, PipesDefaultContextLoader(), message_writer
        )
    except MessagesNotStoredError:
        raise
    except KeyError as error:
        raise BadRequest(f"The event lacks {error}. {_CALLER}") from error
    except (TypeError, AttributeError, ValueError, zlib.error, DagsterPipesError) as error:
        raise BadRequest(
            f"The event's Pipes parameters are invalid ({error}). {_CALLER}"
        ) from error
    if problem := explain_versions(dagster_version, PROTOCOL_VERSION):
        with pipes:  # the message `closed` has the error, since a job has no response
            raise WrongVersionError(problem)
    return pipes


def trace_id(request: flask.Request) -> str:
    """The request's ID in Cloud Trace and Cloud Logging, or `local` without one.

    Google Cloud sends it as `traceparent` (`00-TRACE-SPAN-FLAGS`, W3C Trace Context) and as
    `X-Cloud-Trace-Context` (`TRACE/SPAN;o=OPTIONS`).

    Args:
        request: The request.
    """
    for header, pattern in _TRACE_HEADERS.items():
        if match := re.match(pattern, request.headers.get(header, "")):
            return match[1]
    return "local"


def errors_as_json(handler: Handler) -> Handler:
    """Respond to errors with `{"error": ...}`, and status 400, 409, 500 or 503.

    That is 400 for `BadRequest`, 409 for `Conflict`, 503 for `NotStartedError`, and 500 for all
    others. Once this instance is ending, it responds 503, since another one can handle the request.

    The start and the end of each request are logged, and the traceback of an unexpected error, but
    nothing else about the request. Dagster receives the traceback if the error left the `with`
    block of a Pipes context.

    Args:
        handler: Handles a request.
    """
    set_ready()

    @functools.wraps(handler)
    def handle(request: flask.Request) -> flask.typing.ResponseReturnValue:
        started = time.monotonic()
        execution_id = request.headers.get("Function-Execution-Id")
        with request_timer(), log_request(trace_id(request), execution_id):
            if is_ending():
                _logger.warning("The request was rejected: this instance is ending")
                return {"error": "This instance of the function is ending."}, 503
            _logger.info("The request started")
            try:
                response = handler(request)
            except NotStartedError as error:
                _logger.warning("The request was not handled: see the response")
                return {"error": str(error)}, 503
            except (BadRequest, Conflict) as error:
                _logger.warning("The request was rejected: see the response")
                return {"error": error.description}, error.code
            except BaseException as error:  # a SystemExit would end the server
                _logger.exception("The request failed after %.3f s", time.monotonic() - started)
                text = "".join(traceback.format_exception_only(error)).strip()
                return {"error": text.removeprefix(f"{type(error).__module__}.")}, 500
            _logger.info("The request succeeded after %.3f s", time.monotonic() - started)
            return response

    return handle
