"""Handles the messages of a call: reports them to the run, and records what they say of it."""

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import dagster as dg
from dagster_pipes import PipesException, PipesMessage, PipesParams

from gcp_pipes.orchestrator.context import StepContext
from gcp_pipes.orchestrator.dagster_internals import MessageHandler, metadata_map_from_external
from gcp_pipes.orchestrator.step_calls import LoggedLines
from gcp_pipes.protocol import (
    CAN_BE_CANCELLED,
    HEARTBEAT_INTERVAL,
    LEVELS,
    NOT_STARTED,
    OBSERVATION,
    PROTOCOL_VERSION,
    TASK_ATTEMPT,
    VERSION,
    WRONG_VERSION,
    nearest_level,
)

_OPENED = "[pipes] external process successfully opened dagster pipes."  # Dagster logs it
_MOST_SILENT_INTERVALS = 2.5  # without a sign of life, until the task counts as dead
_LEVELS = {name: number for number, name in LEVELS.items()}


@runtime_checkable
class ReaderAnywhere(Protocol):
    """A message reader that can read messages elsewhere, such as those of an earlier attempt."""

    def get_params(self) -> PipesParams:
        """Where the messages of a new call will be: it has a new `key_prefix`."""

    def reading_at(self, params: PipesParams) -> dg.PipesMessageReader:
        """A reader of the messages at another place."""

    def first_message(self, params: PipesParams) -> str | None:
        """The method of the first message there; None without one."""

    def age(self, params: PipesParams) -> float:
        """How long ago the first message was stored there, in seconds."""


class CallMessageHandler(MessageHandler):
    """Dagster's message handler, which also records what the messages say of the call.

    Attributes:
        params: Where the messages are: what the message reader sends to the message writer.
        message_count: How many messages were received.
        chunk_count: How many chunks they were in.
        heartbeat_count: How many heartbeats were seen.
        opened_extras: The extras of the message `opened`; None before it is received.
        has_closed: Whether the message `closed` was received.
        exception: The exception in the message `closed`, or None.
        observations: The asset observations that the task reported.
        rejected: Why Dagster rejected messages, one text for each.
        lost: What is known of messages that were lost.
        is_followed: Whether the messages are those of an earlier attempt.
        logged: Lines that are in the log already; None if there are none.
        started: Set when the message `opened` or `closed` was received.
        finished: Set when the message `closed` was received, or the task counts as dead.
        silence: How long a dead task had shown no sign of life, in seconds; None for others.
        interrupt: Interrupts the request of the call, while there is one.
    """

    def __init__(
        self, context: StepContext, message_reader: dg.PipesMessageReader, max_log_lines: int
    ) -> None:
        super().__init__(context, message_reader)
        self._max_log_lines = max_log_lines
        self._log_lines = 0
        self.params: PipesParams = {}
        self.message_count = 0
        self.chunk_count = 0
        self.heartbeat_count = 0
        self.opened_extras: Mapping[str, Any] | None = None
        self.exception: PipesException | None = None
        self.observations: list[dg.AssetObservation] = []
        self.rejected: list[str] = []
        self.lost: list[str] = []
        self.is_followed = False
        self.logged: LoggedLines | None = None
        self.started = threading.Event()
        self.finished = threading.Event()
        self.has_closed = False
        self.silence: float | None = None
        self.interrupt: Callable[[], None] | None = None

    @contextmanager
    def handle_messages(self) -> Iterator[PipesParams]:
        """Read messages while the block runs."""
        with super().handle_messages() as self.params:
            yield self.params

    @property
    def message_reader(self) -> dg.PipesMessageReader:
        """The reader of the messages."""
        return self._message_reader

    @property
    def has_opened(self) -> bool:
        """Whether the message `opened` was received."""
        return self.opened_extras is not None

    @property
    def did_not_start(self) -> bool:
        """Whether the message `closed` says that the task did not run."""
        return _is_not_started(self.exception) or self.is_rejected

    @property
    def is_rejected(self) -> bool:
        """Whether the message `closed` says that the deployed code cannot serve the call."""
        return self.exception is not None and self.exception["name"] == WRONG_VERSION

    @property
    def deployed_version(self) -> int:
        """The version of the protocol in the deployed code; Dagster's, if that does not say so."""
        version = (self.opened_extras or {}).get(VERSION)
        return version if isinstance(version, int) else PROTOCOL_VERSION

    @property
    def is_wrong_version(self) -> bool:
        """Whether the deployed code and the definition do not fit together."""
        return self.is_rejected or self.deployed_version != PROTOCOL_VERSION

    @property
    def can_be_cancelled(self) -> bool:
        """Whether the task accepts a request that cancels the call."""
        return bool(self.opened_extras and self.opened_extras.get(CAN_BE_CANCELLED))

    @property
    def task_attempt(self) -> int:
        """How often the platform had started the task again, as Cloud Run does with jobs."""
        return int((self.opened_extras or {}).get(TASK_ATTEMPT) or 0)

    @property
    def heartbeat_interval(self) -> float | None:
        """How long the task stores nothing, at most, in seconds; None if it has not said so."""
        interval = (self.opened_extras or {}).get(HEARTBEAT_INTERVAL)
        return float(interval) if isinstance(interval, int | float) and interval > 0 else None

    @property
    def longest_silence(self) -> float | None:
        """How long the task may show no sign of life until it counts as dead, in seconds.

        None if it sends no heartbeats.
        """
        interval = self.heartbeat_interval
        return None if interval is None else _MOST_SILENT_INTERVALS * interval

    def call_to_cancel(self) -> Mapping[str, Any]:
        """The call, for a request that cancels it."""
        call = {**self.params, "next_chunk": self.chunk_count + 1}
        if self.heartbeat_interval:
            call["next_heartbeat"] = self.heartbeat_count + 1
        return call

    def presume_dead(self, silence: float) -> None:
        """Wait no longer for a task that has shown no sign of life, and for its response.

        Args:
            silence: For how long, in seconds.
        """
        self.silence = silence
        self.finished.set()
        if self.interrupt is not None:
            self.interrupt()

    def read_at(self, params: PipesParams) -> None:
        """Read the messages at a certain place, such as those of an earlier attempt."""
        if isinstance(self._message_reader, ReaderAnywhere):
            self._message_reader = self._message_reader.reading_at(params)

    def first_message(self, params: PipesParams) -> str | None:
        """The method of the first message of an earlier attempt; None without one."""
        if not isinstance(self._message_reader, ReaderAnywhere):
            return None
        try:
            return self._message_reader.first_message(params)
        except Exception:  # the call must not be made again; reading its messages reports the error
            return "opened"

    def age(self, params: PipesParams) -> float:
        """How long ago an earlier attempt has started, in seconds; 0 if that is unknown."""
        try:
            assert isinstance(self._message_reader, ReaderAnywhere)  # noqa: S101  # it has messages
            return self._message_reader.age(params)
        except Exception:  # as above
            return 0.0

    def handle_message(self, message: PipesMessage) -> None:
        """Report the message to the run, and record what it says of the call."""
        self.report_or_reject(message)
        self.record(message)

    def record(self, message: PipesMessage) -> None:
        """Record what the message says of the call."""
        self.message_count += 1
        params = message["params"] or {}
        if message["method"] == "opened":
            self.opened_extras = params.get("extras") or {}
            self.started.set()
        elif message["method"] == "closed":
            self.exception = _exception(params.get("exception"))
            self.has_closed = True
            self.started.set()
            self.finished.set()

    def report_or_reject(self, message: PipesMessage) -> None:
        """Report the message to the run. If Dagster rejects it, log and record why."""
        try:
            self.report(message)
        except Exception as error:
            self.rejected.append(
                f"Dagster rejects what the task reported by {message['method']}: {error} "
                f"Correct it in the task. It reported {message['params']!r:.500}."
            )
            self._context.log.error(self.rejected[-1])

    def report(self, message: PipesMessage) -> None:
        """Report the message to the run."""
        params = message["params"] or {}
        match message["method"]:
            case "opened" if self._is_logged("INFO", _OPENED):
                pass
            case "closed" if _is_not_started(_exception(params.get("exception"))):
                pass  # the response says so, and the call is retried
            case "log":
                self._log(_level(params.get("level")), params["message"])
            case "report_custom_message" if is_observation(params["payload"]):
                self.observations.append(_observation(**params["payload"][OBSERVATION]))
            case "report_asset_materialization" | "report_asset_check":
                _check_metadata(params.get("metadata") or {})
                super().handle_message(message)
            case _:
                super().handle_message(message)

    def _log(self, level: str, text: str) -> None:
        """Log a line in the run. Lines above the limit go to the compute logs of the step."""
        self._log_lines += 1
        if self._is_logged(level, text):
            return
        if self._log_lines <= self._max_log_lines:
            self._context.log.log(level, text)
            return
        if self._log_lines == self._max_log_lines + 1:
            self.warn(
                f"The task has logged {self._max_log_lines} lines. Further lines are in "
                "the compute logs of this step, in stderr. To change the limit, set "
                "`max_log_lines` of the client."
            )
        sys.stderr.write(f"{level} - {text}\n")

    def _is_logged(self, level: str, text: str) -> bool:
        """Whether a line is in the log already, from before the process of the step crashed."""
        return self.logged is not None and self.logged.take(_LEVELS[level], text)

    def warn(self, text: str) -> None:
        """Log a warning in the run."""
        self._context.log.warning(text)


def _is_not_started(exception: PipesException | None) -> bool:
    return exception is not None and exception["name"] == NOT_STARTED


def _exception(reported: Any) -> PipesException | None:
    """The exception in the message `closed`, complete also if another library has sent it."""
    if reported is None:
        return None
    given = reported if isinstance(reported, dict) else {"message": reported}
    stack = given.get("stack")
    return PipesException(
        message=str(given.get("message") or "unknown"),
        stack=[str(line) for line in stack] if isinstance(stack, list) else [],
        name=given.get("name"),
        cause=_exception(given.get("cause")),
        context=_exception(given.get("context")),
    )


def _level(name: str | None) -> str:
    """The log level of Dagster's that is nearest to one of Python's, such as `Level 25`."""
    name = (name or "INFO").upper()
    number = logging.getLevelNamesMapping().get(name)
    if number is None:
        match = re.fullmatch(r"LEVEL (\d+)", name)
        number = int(match[1]) if match else logging.INFO
    return LEVELS[nearest_level(number)]


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        try:
            metadata_map_from_external({key: value})
        except Exception as error:
            raise ValueError(
                f"The metadata value {key!r} is not of the type {value['type']!r}; it is "
                f"{value['raw_value']!r:.200}."
            ) from error


def is_observation(payload: Any) -> bool:
    """Whether the payload of a custom message is an asset observation."""
    return isinstance(payload, dict) and OBSERVATION in payload


def _observation(
    asset_key: str, metadata: Mapping[str, Any], data_version: str | None, partition: str | None
) -> dg.AssetObservation:
    tags = {} if data_version is None else {"dagster/data_version": data_version}
    return dg.AssetObservation(
        dg.AssetKey.from_escaped_user_string(asset_key),
        metadata=metadata_map_from_external(metadata),
        partition=partition,
        tags=tags,
    )
