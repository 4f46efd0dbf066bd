"""Logs a message: `just doctor` calls it to check that messages arrive."""

from dagster_pipes import PipesContext

from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Log "pong".

    Args:
        pipes: The Pipes context, which sends logs to Dagster.
        event: It has no inputs.
    """
    pipes.log.info("pong")
