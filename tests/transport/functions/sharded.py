"""One of several tasks that make one result together."""

import os

from dagster_pipes import PipesContext
from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Log a line; then fail, die, or report the asset, as the event says for its index."""
    index, count = pipes.extras["task_index"], pipes.extras["task_count"]
    assert os.environ["CLOUD_RUN_TASK_COUNT"] == str(count)
    pipes.log.info(f"{pipes.asset_key} shard {index} of {count}")
    if index in event.get("failing", []):
        raise ValueError("no luck")
    if index in event.get("dying", []):
        os._exit(1)
    if index in event.get("reporting", [0]):
        pipes.report_asset_materialization(metadata={"count": count})
