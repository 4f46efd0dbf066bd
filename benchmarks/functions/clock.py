"""A task that tells the time, and then runs on for a while."""

import time

from dagster_pipes import PipesContext
from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Log the time, in seconds since the epoch."""
    time.sleep(0.3)
    pipes.log.info(f"clock {time.time()}")
    time.sleep(2)
