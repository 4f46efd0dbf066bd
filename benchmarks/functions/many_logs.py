"""A task that logs many lines."""

from dagster_pipes import PipesContext
from gcp_pipes.external import Event, event_input


def run(pipes: PipesContext, event: Event) -> None:
    """Log as many lines as the event says."""
    for number in range(event_input(event, "lines")):
        pipes.log.info(f"line {number}")
