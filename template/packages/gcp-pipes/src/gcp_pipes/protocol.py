"""What both sides agree on, in addition to Dagster's own Pipes protocol.

A change here takes effect only when the function and the Dagster project are both deployed.
"""

import re

PROTOCOL_VERSION = 1
"""The version of what both sides agree on.

It changes only if the two sides can no longer understand each other, and not if one of them may
ignore what is new. A side that says no version is not checked.
"""

VERSION_PARAMETER = "DAGSTER_PIPES_PROTOCOL_VERSION"
"""In the body of a call: the `PROTOCOL_VERSION` of Dagster."""

CANCEL_PARAMETER = "DAGSTER_PIPES_CANCEL"
"""In the body of a request that cancels calls: a list, with a JSON object for each call."""

REPLACES_PARAMETER = "DAGSTER_PIPES_REPLACES"
"""In the body of a retry: the key prefixes of earlier attempts, which must not start any more."""

TIMEOUT_PARAMETER = "DAGSTER_PIPES_TIMEOUT"
"""In the body of a call: its timeout, in seconds."""

EVENT_PARAMETER = "DAGSTER_PIPES_EVENT"
"""In the environment of a job: the inputs of the task, as `dagster_pipes.encode_param` makes it."""

STORED_EVENT_PARAMETER = "DAGSTER_PIPES_STORED_EVENT"
"""In the environment of a job: the object with the whole event, if it is too long for that."""

CAN_BE_CANCELLED = "can_be_cancelled"
"""In the extras of the message `opened`: whether the call accepts a request that cancels it."""

HEARTBEAT_INTERVAL = "heartbeat_interval"
"""In the extras of the message `opened`: how long a call stores nothing, at most, in seconds."""

TASK_ATTEMPT = "task_attempt"
"""In the extras of the message `opened`: how often Cloud Run has started the task again."""

VERSION = "protocol_version"
"""In the extras of the message `opened`: the `PROTOCOL_VERSION` of the function or job."""

FUNCTION_NAME = "function_name"
"""In the extras of the message `opened`: the name of the function, if it knows its name."""

NOT_STARTED = "NotStartedError"
"""The name of the exception in the message `closed` of an attempt that has done nothing."""

WRONG_VERSION = "WrongVersionError"
"""The name of the exception in the message `closed` of a call that the deployed code rejects."""

MESSAGE_NUMBER = "number"
"""In each message: its number, from 1. A gap shows that a message was lost."""

SKIPS_REPEATED = "skips_repeated"
"""In the parameters of the messages: whether the reader skips messages that are `REPEATED`."""

REPEATED = "repeated"
"""In a message: whether it may be stored in an earlier chunk, too."""

REPLACED_BY = "replaced_by"
"""In the first message of an attempt that was replaced: the key prefix of the one that did it."""

OBSERVATION = "gcp_pipes.asset_observation"
"""In the payload of a custom message: an asset observation."""

_RETRY = r"-retry-([0-9]+)$"  # the end of a key prefix

LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
"""The log levels that Dagster has, by their numbers in Python's `logging`."""


def explain_versions(dagster: int, deployed: int, deploy: str = "deploy it") -> str | None:
    """Why Dagster and the code that it calls do not understand each other; None if they do.

    Args:
        dagster: The version of the protocol in Dagster.
        deployed: That of the code of the function or job.
        deploy: How to deploy that code.
    """
    if dagster == deployed:
        return None
    older = f"The deployed code is older: {deploy}."
    if deployed > dagster:
        older = "The code of Dagster is older: deploy the Dagster project."
    return (
        f"Dagster has version {dagster} of the protocol of their calls, and the deployed code has "
        f"version {deployed}. {older}"
    )


def chunk_name(key_prefix: str | None, number: int) -> str:
    """The object that holds a chunk of messages, as `dagster_pipes` names it.

    Args:
        key_prefix: The key prefix of the call. None puts the chunks at the root of the bucket.
        number: The number of the chunk, from 1.
    """
    return f"{key_prefix}/{number}.json" if key_prefix else f"{number}.json"


def retried_prefix(key_prefix: str, attempt: int) -> str:
    """The key prefix of the messages of a task that Cloud Run has started again.

    Args:
        key_prefix: The key prefix of any of its attempts.
        attempt: How often it was started again.
    """
    return f"{first_prefix(key_prefix)}-retry-{attempt}"


def first_prefix(key_prefix: str) -> str:
    """The key prefix that a task had before Cloud Run started it again.

    Args:
        key_prefix: The key prefix of any of its attempts.
    """
    return re.sub(_RETRY, "", key_prefix)


def retry_number(key_prefix: str) -> int:
    """How often Cloud Run had started a task again, by its key prefix; 0 if that does not say so.

    Args:
        key_prefix: The key prefix of the messages of the attempt.
    """
    match = re.search(_RETRY, key_prefix)
    return int(match[1]) if match else 0


def stored_event_name(key_prefix: str) -> str:
    """The object that holds the event of an attempt.

    Args:
        key_prefix: The key prefix of the messages of the attempt.
    """
    return f"events/{key_prefix}"


def heartbeat_name(key_prefix: str | None, number: int | str) -> str:
    """The object that shows that a call without new messages is alive.

    Args:
        key_prefix: The key prefix of the call. None puts the heartbeats at the root of the bucket.
        number: The number of the heartbeat, from 1.
    """
    return f"{key_prefix}/heartbeats/{number}" if key_prefix else f"heartbeats/{number}"


def nearest_level(number: int) -> int:
    """The log level of Dagster's that is nearest; of two, the lower one.

    Args:
        number: A log level of Python's.
    """
    return min(LEVELS, key=lambda known: abs(known - number))
