"""How long the daily loop takes: a run that the web page launches, and `just materialize`.

Runs in a rendered project, whose path is the argument: `make benchmark`.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import run
from dev import running_dev

ROUNDS = 10


def median(work: Callable[[], object]) -> float:
    """The median of the seconds that some work takes."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        work()
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


def main() -> None:
    """Measure, and print."""
    project = Path(sys.argv[1]).resolve()
    command = ("uv", "run", "just", "materialize", "people")
    with running_dev(project) as dev:
        dev.materialize("people")
        run(*command, cwd=project)
        launched = median(lambda: dev.materialize("people"))
        terminal = median(lambda: run(*command, cwd=project))
    print(f"\nMaterialize `people`, with `just dev` running: the median of {ROUNDS}")
    print(f"from the launch on the web page to the end of the run  {launched:.1f} s")
    print(f"`just materialize people`                              {terminal:.1f} s")


if __name__ == "__main__":
    main()
