"""A task that reports a number of rows."""

from dagster_pipes import PipesContext

from gcp_pipes.external import Event, event_input


def run(pipes: PipesContext, event: Event) -> None:
    """Report the input `rows`, a number."""
    pipes.report_asset_materialization(metadata={"rows": count(event_input(event, "rows"))})


def count(rows: int) -> int:
    """The number of rows. Raise a TypeError if it is not a number."""
    return len(range(rows))
