"""A task that sleeps for a fifth of a second, and reports its asset."""

import time

from dagster_pipes import PipesContext
from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Sleep."""
    time.sleep(0.2)
    pipes.report_asset_materialization(asset_key=event.get("asset"), metadata={"size": 3})
