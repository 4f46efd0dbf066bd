"""A task that does what the event says, good or bad: for the tests of the transport."""

import ctypes
import json
import logging
import os
import time
import warnings
from typing import Any

from dagster_pipes import PipesContext
from gcp_pipes.external import Event, report_asset_observation
from opentelemetry import trace


def run(pipes: PipesContext, event: Event) -> None:
    """Log lines, with a pause after each, and then end as the event says."""
    if "span" in event:
        with trace.get_tracer("task").start_as_current_span(event["span"]):
            pass
    size = event.get("size", 0)  # characters of each line, beside its number
    for number in range(event.get("lines", 0)):
        pipes.log.info(f"{pipes.asset_key} line {number}{'x' * size}")
        time.sleep(event.get("pause", 0))
    time.sleep(event.get("sleeps", 0))
    ctypes.PyDLL(None).usleep(int(event.get("holds_the_gil", 0) * 1_000_000))
    for text in event.get("warnings", []):
        warnings.warn(text, stacklevel=1)
    for text in event.get("library_logs", []):
        logging.getLogger("some.library").error(text)
    partition = pipes.partition_key_range["start"] if pipes.is_partition_step else None
    if partition in event.get("failing_partitions", []):
        raise ValueError(f"{partition} is out of luck")
    if partition in event.get("failing_at_first", []) and pipes.retry_number == 0:
        raise ValueError(f"{partition} is out of luck at first")
    if "error" in event:
        try:
            raise KeyError("what came first")
        except KeyError:
            raise ValueError(event["error"])  # noqa: B904  # so that it has a context
    if event.get("die"):
        time.sleep(1.5)  # the messages are on their way
        os._exit(1)
    for check in event.get("checks", []):
        pipes.report_asset_check(**check)
    if partition in event.get("doubtful_partitions", []):
        pipes.report_asset_check(
            "no_doubt",
            passed=False,
            severity=event.get("severity", "WARN"),
            metadata={"doubts": 1},
        )
    elif "doubtful_partitions" in event:
        pipes.report_asset_check("no_doubt", passed=True)
    for asset_key in event.get("observed", []):
        report_asset_observation(pipes, asset_key, metadata={"seen": 1}, data_version="7")
    for payload in event.get("custom_messages", []):
        pipes.report_custom_message(payload)
    for asset_key in event.get("assets", []):
        pipes.report_asset_materialization(asset_key=asset_key)
    if event.get("tell_context"):
        pipes.log.info(json.dumps(told(pipes)))
    if event.get("report", "assets" not in event):
        pipes.report_asset_materialization(
            metadata=event.get("metadata"), data_version=event.get("data_version")
        )


def told(pipes: PipesContext) -> dict[str, Any]:
    """What Dagster has told the function of the run."""
    return {
        "run_id": pipes.run_id,
        "retry_number": pipes.retry_number,
        "extras": pipes.extras,
        "partitions": pipes.partition_key_range if pipes.is_partition_step else None,
        "window": pipes.partition_time_window if pipes.is_partition_step else None,
    }
