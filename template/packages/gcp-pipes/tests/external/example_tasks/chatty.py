"""A task that logs as Python libraries do."""

import logging
import time

from dagster_pipes import PipesContext

from gcp_pipes.external import Event

logger = logging.getLogger("a.library")


def run(pipes: PipesContext, event: Event) -> None:
    """Log at several levels. Then log and sleep for `seconds`, `times` times."""
    logger.info("Read %s rows", 3)
    try:
        raise ValueError("no rows")
    except ValueError:
        logger.exception("Could not read")
    logger.log(25, "Between two levels")
    for _ in range(event.get("times", 1)):
        logger.info("Still here")
        time.sleep(event.get("seconds", 0))
