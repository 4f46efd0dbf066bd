"""An example of a task with partitions: fake visits of one day. Replace it with your own."""

import random

import polars as pl
from dagster_pipes import PipesContext

from gcp_pipes.external import Event, event_input
from lake import read_table, table_location, write_partition


def run(pipes: PipesContext, event: Event) -> None:
    """Replace the visits of one day in the asset's table in the data lake.

    Args:
        pipes: The Pipes context, with the asset and its partition, which is the day. It sends logs
            and results to Dagster.
        event: Inputs: `dl_bucket`, the data lake, is `gs://bucket` or the absolute path of a
            folder. `visits` is the number of visits (by default 100), and `visitors` the number of
            people who may visit (by default 1,000).
    """
    lake = event_input(event, "dl_bucket")
    day = pipes.partition_key
    visits = get_fake_visits(day, event.get("visits", 100), event.get("visitors", 1_000))
    location = table_location(lake, pipes.asset_key)
    table = write_partition(visits, location, column="day", value=day)
    pipes.log.info(f"Wrote {table.row_count} visits of {day}")

    people = read_table(table_location(lake, "people"))
    strangers = visits.join(people, left_on="person_id", right_on="id", how="anti").height
    pipes.report_asset_check(
        "visitors_are_known", passed=strangers == 0, severity="WARN", metadata={"visits": strangers}
    )
    metadata = table.metadata(
        descriptions={"minute": "The minute of the day"}, lineage={"person_id": [("people", "id")]}
    )
    pipes.report_asset_materialization(metadata=metadata)


def get_fake_visits(day: str, visits: int, visitors: int) -> pl.DataFrame:
    """Generate visits of people with the IDs from 1 to `visitors`. A day has the same each time.

    Args:
        day: The day, as `YYYY-MM-DD`.
        visits: How many visits.
        visitors: How many people may visit.
    """
    generator = random.Random(day)  # noqa: S311  # nothing secret
    return pl.DataFrame(
        {
            "day": [day] * visits,
            "minute": sorted(generator.randrange(24 * 60) for _ in range(visits)),
            "person_id": [generator.randint(1, visitors) for _ in range(visits)],
        },
        schema={"day": pl.String, "minute": pl.Int64, "person_id": pl.Int64},
    ).with_columns(pl.col("day").str.to_date())
