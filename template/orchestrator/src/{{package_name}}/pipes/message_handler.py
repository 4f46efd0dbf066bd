"""Keeps account of what the cloud function said during one call."""

import threading

import dagster as dg
from dagster_pipes import PipesException, PipesMessage


class CloudFunctionMessageHandler(dg.PipesMessageHandler):
    """Dagster's message handler, which also remembers how much came, and how the function ended.

    Attributes:
        message_count: How many messages have been handled.
        chunk_count: How many chunks they came in.
        exception: The exception that the function closed with, or None.
        closed: Set as soon as the function has closed.
    """

    def __init__(
        self,
        context: dg.OpExecutionContext | dg.AssetExecutionContext,
        message_reader: dg.PipesMessageReader,
    ) -> None:
        super().__init__(context, message_reader)
        self.message_count = 0
        self.chunk_count = 0
        self.exception: PipesException | None = None
        self.closed = threading.Event()

    def handle_message(self, message: PipesMessage) -> None:
        """Pass the message on to Dagster, and count it."""
        super().handle_message(message)
        self.message_count += 1
        if message["method"] == "closed":
            self.exception = (message["params"] or {}).get("exception")
            self.closed.set()
