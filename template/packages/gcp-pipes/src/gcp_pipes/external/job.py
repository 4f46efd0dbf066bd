"""Reads what a Cloud Run job has to do: one task of an execution, as one request to a function.

An execution has no request. Its environment variables hold what the body of a request would: the
inputs of the task and the parameters of Pipes. What is too long for them is in the messages bucket.
"""

import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    decode_param,
    encode_param,
)
from google.api_core.exceptions import Forbidden, NotFound
from google.cloud import storage
from werkzeug.exceptions import BadRequest, Conflict

from gcp_pipes.external.logs import log_request
from gcp_pipes.external.request import Event
from gcp_pipes.external.shutdown import watch_for_the_end
from gcp_pipes.protocol import (
    EVENT_PARAMETER,
    REPLACED_BY,
    REPLACES_PARAMETER,
    STORED_EVENT_PARAMETER,
    chunk_name,
    retried_prefix,
)

_CALLER = "This job is executed by a Dagster asset, through PipesCloudRunJobClient."
_TIMEOUT = 60.0  # seconds, to read a stored event

_logger = logging.getLogger(__name__)


@contextmanager
def job_event(client: storage.Client) -> Iterator[Event]:
    """The event of this task, as the body of a request would be; use it in a `with` block.

    The block runs the task. What it logs is grouped with the execution. After SIGTERM, it has ten
    seconds: tasks are stopped as those of a function are.

    If Cloud Run has started the task again, by a retry of its own, its messages get another key
    prefix. It does nothing if a retry of Dagster's has replaced it.

    Args:
        client: The Cloud Storage client, for events that are not in the environment.

    Raises:
        BadRequest: The environment has no event of Dagster's, or an invalid one.
        Conflict: A retry has replaced this task.
        google.api_core.exceptions.GoogleAPICallError: An object could not be read.
    """
    watch_for_the_end()
    execution = os.environ.get("CLOUD_RUN_EXECUTION", "local")
    started = time.monotonic()
    with log_request(execution, execution):
        _logger.info("The task started")
        event = _read_event(os.environ, client)
        if attempt := int(os.environ.get("CLOUD_RUN_TASK_ATTEMPT", 0)):
            event = _event_of_retry(event, client, attempt)
        try:
            yield event
        except BaseException as error:  # Python prints it, in lines without a severity
            _logger.error("The task failed after %.3f s: %r", time.monotonic() - started, error)
            raise
        _logger.info("The task succeeded after %.3f s", time.monotonic() - started)


def _read_event(environment: Mapping[str, str], client: storage.Client) -> dict[str, Any]:
    """The inputs of the task and the parameters of Pipes."""
    try:
        if uri := environment.get(STORED_EVENT_PARAMETER):
            blob = storage.Blob.from_uri(uri, client=client)
            events: list[dict[str, Any]] = json.loads(blob.download_as_bytes(timeout=_TIMEOUT))
            return events[int(environment.get("CLOUD_RUN_TASK_INDEX", 0))]
        event: dict[str, Any] = decode_param(environment[EVENT_PARAMETER])
    except LookupError as error:
        raise BadRequest(f"The environment lacks {error}. {_CALLER}") from error
    except (ValueError, zlib.error) as error:
        raise BadRequest(f"The event cannot be decoded ({error}). {_CALLER}") from error
    names = (DAGSTER_PIPES_CONTEXT_ENV_VAR, DAGSTER_PIPES_MESSAGES_ENV_VAR)
    return event | {name: environment[name] for name in names if name in environment}


def _event_of_retry(
    event: Mapping[str, Any], client: storage.Client, attempt: int
) -> dict[str, Any]:
    """The event of a task that Cloud Run has started again.

    Its messages have a new key prefix only if the task has opened Pipes before. Until it does, a
    retry of Dagster's may replace it, as always.
    """
    params = decode_param(event[DAGSTER_PIPES_MESSAGES_ENV_VAR])
    bucket, key_prefix = client.bucket(params["bucket"]), params["key_prefix"]
    first = _first_message(bucket, key_prefix)
    if first is None:
        replaces = [
            each
            for each in event.get(REPLACES_PARAMETER, [])
            if (_first_message(bucket, each) or {}).get(REPLACED_BY) != key_prefix
        ]
        return {**event, REPLACES_PARAMETER: replaces}
    if first["method"] != "opened":
        raise Conflict("A retry has replaced this task. It does nothing.")
    params = {**params, "key_prefix": retried_prefix(key_prefix, attempt)}
    return {
        **event,
        DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param(params),
        REPLACES_PARAMETER: [],  # the first attempt has done it
    }


def _first_message(bucket: storage.Bucket, key_prefix: str) -> dict[str, Any] | None:
    """The first message of an attempt; None without one."""
    try:
        chunk = bucket.blob(chunk_name(key_prefix, 1)).download_as_bytes(timeout=_TIMEOUT)
    except NotFound:
        return None
    except Forbidden as error:
        raise Conflict(
            "Cloud Run has started this task again, which does nothing, since it cannot know "
            "whether a retry of Dagster's has replaced it. Set the job's maximum of retries to 0, "
            f"or grant roles/storage.objectViewer on gs://{bucket.name} to its account."
        ) from error
    message: dict[str, Any] = json.loads(chunk.split(b"\n")[0])
    return message
