"""Logs a line. `just doctor` calls it to check that messages are received."""

from dagster_pipes import PipesContext

from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Log a line.

    Args:
        pipes: The Pipes context.
        event: Inputs: none.
    """
    pipes.log.info("pong")
