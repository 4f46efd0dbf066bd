"""A task that does what the event says, good or bad: for the tests of the transport."""

import logging
import os
import time
import warnings

from dagster_pipes import PipesContext
from gcp_pipes import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Log lines, with a pause after each, and then end as the event says."""
    size = event.get("size", 0)  # characters of each line, beside its number
    for number in range(event.get("lines", 0)):
        pipes.log.info(f"{pipes.asset_key} line {number}{'x' * size}")
        time.sleep(event.get("pause", 0))
    for text in event.get("warnings", []):
        warnings.warn(text, stacklevel=1)
    for text in event.get("library_logs", []):
        logging.getLogger("some.library").error(text)
    if "error" in event:
        try:
            raise KeyError("what came first")
        except KeyError:
            raise ValueError(event["error"])  # noqa: B904  # so that it has a context
    if event.get("die"):
        time.sleep(1.5)  # the messages are on their way
        os._exit(1)
    if event.get("report", True):
        pipes.report_asset_materialization(
            metadata=event.get("metadata"), data_version=event.get("data_version")
        )
