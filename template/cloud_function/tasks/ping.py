"""Does nothing but answer: `just doctor` calls it, to see whether messages arrive."""

from dagster_pipes import PipesContext

from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Say that the function is there.

    Args:
        pipes: The Pipes context: it takes what Dagster is to know.
        event: Inputs: none.
    """
    pipes.log.info("pong")
