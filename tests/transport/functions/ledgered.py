"""A task that writes into a ledger when it starts and ends, so tests know what was executed."""

import json
import os
import time
import uuid
from pathlib import Path

from dagster_pipes import PipesContext
from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Log lines, with a pause after each, and end as the event says."""
    execution = uuid.uuid4().hex
    what = pipes.partition_key_range["start"] if pipes.is_partition_step else pipes.asset_key
    write(event, what, execution, "started")
    if event.get("deaths", 0) >= count(event, what, "started"):
        time.sleep(1.5)  # the first messages are on their way
        os._exit(1)
    try:
        for number in range(event["lines"]):
            pipes.log.info(f"{what} line {number}")
            time.sleep(event["pause"])
        if event.get("failures", 0) > count(event, what, "failed"):
            raise ValueError(f"{what} is out of luck")
    except BaseException:
        write(event, what, execution, "failed")
        raise
    pipes.report_asset_materialization(metadata={"execution": execution})
    write(event, what, execution, "ended")


def write(event: Event, what: str, execution: str, state: str) -> None:
    """Append to the ledger: one short line is written at once, also by many processes."""
    line = json.dumps([what, execution, state, time.time(), os.getpid()]) + "\n"
    file = os.open(event["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def count(event: Event, what: str, state: str) -> int:
    """How often something has got into a state."""
    with Path(event["ledger"]).open() as ledger:
        return sum(json.loads(line)[0::2][:2] == [what, state] for line in ledger)
