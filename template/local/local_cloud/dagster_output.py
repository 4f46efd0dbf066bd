"""Condenses what Dagster prints: a line for each step and each run, instead of one for each event.

Dagster prints the events of a run in the format of its console logger:

    TIME - dagster - DEBUG - JOB - RUN_ID - 123 - people - STEP_START - Started execution of ...
"""

import re
from datetime import datetime

from local_cloud.console import console
from rich.text import Text

_RECORD = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}) - dagster - (?P<level>[A-Z]+) - .+? - "
    r"(?P<run>[0-9a-f]{8}-[0-9a-f-]{27}) - (?P<text>.*)"
)
_EVENT = re.compile(
    r"\d+ - ((?P<step>\S+) - )?(RUN|STEP)_"
    r"(?P<state>START|SUCCESS|FAILURE|CANCELED|SKIPPED|UP_FOR_RETRY|RESTARTED) - "
)
_STATES = {
    "SUCCESS": Text("succeeded", "green"),
    "FAILURE": Text("failed", "red"),
    "CANCELED": Text("was terminated", "yellow"),
    "SKIPPED": Text("was skipped", "yellow"),
    "UP_FOR_RETRY": Text("failed and will be retried", "yellow"),
}


class DagsterOutput:
    """Prints the lines of Dagster's output that matter; use it for all lines, in their order.

    Args:
        verbose: Whether to print all lines.
    """

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._started: dict[tuple[str, str], datetime] = {}
        self._is_in_error = False  # the next lines are the rest of a record: an error

    def __call__(self, line: str) -> None:
        """Print a line, if it matters."""
        if self._verbose:
            console.out(line)
        elif record := _RECORD.fullmatch(line):
            event = _EVENT.match(record["text"])
            state = event["state"] if event else None
            self._is_in_error = state in ("FAILURE", "UP_FOR_RETRY")
            if event:
                self._show_event(record, event)
            elif record["level"] in ("WARNING", "ERROR", "CRITICAL"):
                console.print(Text(f"run {record['run'][:8]}: {record['text']}"))
        elif not self._is_in_error:
            console.out(line)

    def _show_event(self, record: re.Match[str], event: re.Match[str]) -> None:
        now = datetime.strptime(record["time"], "%Y-%m-%d %H:%M:%S %z")
        step, run = event["step"] or "", record["run"]
        if event["state"] in ("START", "RESTARTED"):
            self._started[run, step] = now
            return
        seconds = (now - self._started.pop((run, step), now)).total_seconds()
        name = f"run {run[:8]}: {step} " if step else f"run {run[:8]} "
        console.print(
            Text.assemble(f"{now:%H:%M:%S} ", name, _STATES[event["state"]], f" ({seconds:.0f} s)")
        )
