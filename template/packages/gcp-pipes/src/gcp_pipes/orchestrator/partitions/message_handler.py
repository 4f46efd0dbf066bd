"""Handles the messages of the call for one partition."""

from collections.abc import Callable
from typing import Any

import dagster as dg
from dagster_pipes import PipesMessage

from gcp_pipes.orchestrator.context import StepContext
from gcp_pipes.orchestrator.messages import CallMessageHandler, is_observation


class PartitionMessageHandler(CallMessageHandler):
    """The message handler of one partition's call, while others are in flight in the same step.

    Its reports are enqueued for the step's own thread, and each text begins with the partition key.
    """

    def __init__(
        self,
        context: StepContext,
        message_reader: dg.PipesMessageReader,
        max_log_lines: int,
        partition_key: str,
        enqueue: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__(context, message_reader, max_log_lines)
        self._partition_key = partition_key
        self._enqueue = enqueue

    def handle_message(self, message: PipesMessage) -> None:
        """Record what the message says of the call, and enqueue its report."""
        self.record(message)
        self._enqueue(lambda: self.report_or_reject(message))

    def report(self, message: PipesMessage) -> None:
        """Report the message to the run, except `opened`."""
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
            case "report_custom_message" if not is_observation(params["payload"]):
                text = f"[{self._partition_key}] Custom message: {params['payload']}"
                if not self._is_logged("INFO", text):
                    self._context.log.info(text)
        super().report(message)

    def report_pipes_framework_exception(self, origin: str, exc_info: Any) -> None:
        """Enqueue the report of an error in the messages."""
        report = super().report_pipes_framework_exception
        self._enqueue(lambda: report(f"{origin} [{self._partition_key}]", exc_info))

    def warn(self, text: str) -> None:
        """Enqueue a warning."""
        self._enqueue(lambda: self._context.log.warning(f"[{self._partition_key}] {text}"))
