"""Keeps account of what the cloud function said during one call."""

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster_pipes import PipesException, PipesMessage, PipesParams

from .context_data import StepContext
from .dagster_internals import MessageHandler, metadata_map_from_external

_OBSERVATION = "gcp_pipes.asset_observation"  # as gcp_pipes/observation.py of the function says it
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}  # of Dagster


class CloudFunctionMessageHandler(MessageHandler):
    """Dagster's message handler, which also remembers how much came, and how the function ended.

    Args:
        context: The context of the asset or op.
        message_reader: Brings the messages.
        max_log_lines: How many log lines of the call go into the event log. Further ones go to the
            compute logs of the step.

    Attributes:
        params: Where the messages are: what the message reader tells the message writer.
        message_count: How many messages came.
        chunk_count: How many chunks they came in.
        opened_extras: What the function said of itself when it began; None before that.
        has_closed: Whether the function has said that it has ended.
        exception: The exception that the function ended with, or None.
        observations: The asset observations that the function reported.
        refused: What the function reported, and Dagster does not take: for each, why.
        lost: What is known of messages that did not arrive.
        begun: Set when the function has begun, or is not to be waited for any longer.
        settled: The same, when it has ended.
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
        self.opened_extras: Mapping[str, Any] | None = None
        self.exception: PipesException | None = None
        self.observations: list[dg.AssetObservation] = []
        self.refused: list[str] = []
        self.lost: list[str] = []
        self.begun = threading.Event()
        self.settled = threading.Event()
        self.has_closed = False

    @contextmanager
    def handle_messages(self) -> Iterator[PipesParams]:
        """Read messages while the block runs."""
        with super().handle_messages() as self.params:
            yield self.params

    @property
    def has_opened(self) -> bool:
        """Whether the function has said that it begins."""
        return self.opened_extras is not None

    @property
    def can_be_cancelled(self) -> bool:
        """Whether the function has said that it can be told to end the call."""
        return bool(self.opened_extras and self.opened_extras.get("can_be_cancelled"))

    def handle_message(self, message: PipesMessage) -> None:
        """Report the message to the run, and remember what it says of the call.

        Args:
            message: The next message that the function wrote.
        """
        self._report_or_refuse(message)
        self.remember(message)

    def report(self, message: PipesMessage) -> None:
        """Bring the message into the run.

        Args:
            message: What the function wrote. An observation is only kept, among the `observations`.

        Raises:
            ValueError: Dagster does not take a metadata value.
        """
        params = message["params"] or {}
        match message["method"]:
            case "log":
                self._log(_level(params.get("level")), params["message"])
            case "report_custom_message" if _is_observation(params["payload"]):
                self.observations.append(_observation(**params["payload"][_OBSERVATION]))
            case "report_asset_materialization" | "report_asset_check":
                _check_metadata(params.get("metadata") or {})
                super().handle_message(message)
            case _:
                super().handle_message(message)

    def remember(self, message: PipesMessage) -> None:
        """Note what the message says of the call.

        Args:
            message: What the function wrote. Each counts; `opened` and `closed` tell more.
        """
        self.message_count += 1
        params = message["params"] or {}
        if message["method"] == "opened":
            self.opened_extras = params.get("extras") or {}
            self.begun.set()
        elif message["method"] == "closed":
            self.exception = params.get("exception")
            self.has_closed = True
            self.wait_no_longer()

    def _log(self, level: str, text: str) -> None:
        """Log a line in the run; one too many is written to the compute logs of the step."""
        self._log_lines += 1
        if self._log_lines <= self._max_log_lines:
            self._context.log.log(level, text)
            return
        if self._log_lines == self._max_log_lines + 1:
            self.warn(
                f"The cloud function has logged {self._max_log_lines} lines. Those that follow are "
                "in the compute logs of this step, in stderr. `max_log_lines` of the client is the "
                "limit."
            )
        sys.stderr.write(f"{level} - {text}\n")

    def _report_or_refuse(self, message: PipesMessage) -> None:
        """Bring the message into the run, or remember why that was not possible, and say so."""
        try:
            self.report(message)
        except Exception as error:
            self.refused.append(
                f"Dagster does not take what the task reported by {message['method']}: {error} "
                f"Correct it in the task. It reported {message['params']!r:.500}."
            )
            self._context.log.error(self.refused[-1])

    def wait_no_longer(self) -> None:
        """Let whoever waits for messages go on."""
        self.begun.set()
        self.settled.set()

    def warn(self, text: str) -> None:
        """Say in the run what is remarkable about the call.

        Args:
            text: What to log as a warning.
        """
        self._context.log.warning(text)


class PartitionMessageHandler(CloudFunctionMessageHandler):
    """The same for the call of one partition, beside others in the same step.

    All that goes into the run is left to the step's own thread, and says of which partition it is.

    Args:
        context: The context of the asset.
        message_reader: Brings the messages.
        max_log_lines: As for one call.
        partition_key: The partition.
        leave: Takes what is to be done in the step's own thread.
    """

    def __init__(
        self,
        context: StepContext,
        message_reader: dg.PipesMessageReader,
        max_log_lines: int,
        partition_key: str,
        leave: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__(context, message_reader, max_log_lines)
        self._partition_key = partition_key
        self._leave = leave

    def handle_message(self, message: PipesMessage) -> None:
        """Remember what the message says of the call, and leave it to be reported.

        Args:
            message: The next message that the function wrote.
        """
        self.remember(message)
        self._leave(lambda: self._report_or_refuse(message))

    def report(self, message: PipesMessage) -> None:
        """Bring the message into the run, unless it says only that the call goes as it should.

        Args:
            message: What the function wrote. What it logs is put after the partition's key.
        """
        params = message["params"] or {}
        match message["method"]:
            case "opened":
                return
            case "log":
                text = f"[{self._partition_key}] {params['message']}"
                message = {**message, "params": {**params, "message": text}}
            case "log_external_stream":
                lines = params["text"].splitlines(keepends=True)
                text = "".join(f"[{self._partition_key}] {line}" for line in lines)
                message = {**message, "params": {**params, "text": text}}
            case "report_custom_message" if not _is_observation(params["payload"]):
                text = f"[{self._partition_key}] The function says: {params['payload']}"
                self._context.log.info(text)
        super().report(message)

    def report_pipes_framework_exception(self, origin: str, exc_info: Any) -> None:
        """Leave it to be reported that something is wrong with the messages.

        Args:
            origin: Who noticed: the name of the message reader's class.
            exc_info: What is wrong, as `sys.exc_info()` returns it.
        """
        report = super().report_pipes_framework_exception
        self._leave(lambda: report(f"{origin} [{self._partition_key}]", exc_info))

    def warn(self, text: str) -> None:
        """Leave it to be said what is remarkable about the call.

        Args:
            text: What to log as a warning, after the partition's key.
        """
        self._leave(lambda: self._context.log.warning(f"[{self._partition_key}] {text}"))


def _level(name: str | None) -> str:
    """The level of Dagster's that is nearest to one of Python's logging, such as `Level 25`."""
    name = (name or "INFO").upper()
    number = logging.getLevelNamesMapping().get(name)
    if number is None:
        match = re.fullmatch(r"LEVEL (\d+)", name)
        number = int(match[1]) if match else logging.INFO
    return min(_LEVELS, key=lambda known: abs(_LEVELS[known] - number))


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        try:
            metadata_map_from_external({key: value})
        except Exception as error:
            raise ValueError(
                f"The metadata value {key!r} is not of the type {value['type']!r}; it is "
                f"{value['raw_value']!r:.200}."
            ) from error


def _is_observation(payload: Any) -> bool:
    return isinstance(payload, dict) and _OBSERVATION in payload


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
