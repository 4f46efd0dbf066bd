"""A task that writes or reads a table as the event says: for the tests of the data lake."""

import random
from typing import cast

import polars as pl
from dagster_pipes import PipesContext
from gcp_pipes.external import Event, event_input
from lake import merge_table, read_table, table_location, write_partition, write_table


def run(pipes: PipesContext, event: Event) -> None:
    """Write rows with the given IDs, or log the IDs of those that fulfil a condition."""
    location = table_location(event_input(event, "dl_bucket"), pipes.asset_key)
    if "where" in event:
        found = read_table(location, columns=["id"], where=event["where"])
        pipes.log.info(f"found {sorted(found['id'])}")
        pipes.report_asset_materialization()
        return
    rows = pl.DataFrame({"id": event.get("ids", [1, 2, 3])})
    if "mebibytes" in event:  # which cannot be compressed
        blocks = [random.randbytes(1 << 20) for _ in range(cast(int, event["mebibytes"]))]
        rows = pl.DataFrame({"id": range(len(blocks)), "block": blocks})
    match event.get("mode", "overwrite"):
        case "partition":
            day = pipes.partition_key_range["start"] if pipes.is_partition_step else event["day"]
            rows = rows.with_columns(day=pl.lit(day))
            table = write_partition(rows, location, column="day", value=day)
        case "merge":
            table = merge_table(rows, location, key="id")
        case mode:
            table = write_table(rows, location, mode=mode)
    pipes.report_asset_materialization(metadata=table.metadata())
