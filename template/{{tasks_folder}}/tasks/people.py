"""An example of a task, with fake people. Replace it with your own."""

import polars as pl
from dagster_pipes import PipesContext
from faker import Faker

from gcp_pipes.external import Event, event_input
from lake import table_location, write_table


def run(pipes: PipesContext, event: Event) -> None:
    """Replace the asset's table in the data lake with new fake people.

    Args:
        pipes: The Pipes context, with the asset. It sends logs and results to Dagster.
        event: Inputs: `dl_bucket`, the data lake, is `gs://bucket` or the absolute path of a
            folder. `rows` is the number of people (by default 1,000).
    """
    dl_bucket = event_input(event, "dl_bucket")
    pipes.log.debug(f"Storing data in bucket {dl_bucket}")
    location = table_location(dl_bucket, pipes.asset_key)

    df = get_fake_data(event.get("rows", 1_000))
    pipes.log.info(f"Writing {df.height} rows to {location}")
    table = write_table(df, location)
    pipes.log.info(f"Wrote version {table.version} of the table")

    pipes.report_asset_materialization(metadata=table.metadata(), data_version=str(table.version))


def get_fake_data(rows: int) -> pl.DataFrame:
    """Generate people with the IDs 1, 2 and so on.

    Args:
        rows: How many.
    """
    fake = Faker(use_weighting=False)  # much faster: it ignores how common a name is
    return pl.DataFrame(
        {
            "id": range(1, rows + 1),
            "name": [fake.name() for _ in range(rows)],
            "email": [fake.email() for _ in range(rows)],
            "city": [fake.city() for _ in range(rows)],
            "date_of_birth": [fake.date_of_birth(minimum_age=18) for _ in range(rows)],
        }
    )
