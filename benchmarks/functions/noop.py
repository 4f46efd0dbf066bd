"""A task that does nothing."""

from dagster_pipes import PipesContext
from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Return."""
