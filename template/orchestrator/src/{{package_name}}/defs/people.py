"""A table of people in the data lake, written by the cloud function every morning."""

import dagster as dg

from gcp_pipes.orchestrator import PipesCloudFunctionClient, code_references

from ..settings import Settings


class PeopleConfig(dg.Config):
    """What can be changed when a run is launched, on the launchpad."""

    rows: int = 1_000


@dg.asset(
    group_name="lake",
    kinds={"googlecloud", "deltalake", "polars"},
    metadata=code_references(__file__, task="people"),
)
def people(
    context: dg.AssetExecutionContext,
    config: PeopleConfig,
    settings: dg.ResourceParam[Settings],
    pipes_function_client: PipesCloudFunctionClient,
) -> dg.MaterializeResult[None]:
    """Fake people in a Delta table. The work is done by the task of the same name."""
    return pipes_function_client.run(
        context=context,
        function_url=settings.function_url,
        event={"dl_bucket": settings.lake_uri, "rows": config.rows},
    ).get_materialize_result()


people_every_morning = dg.ScheduleDefinition(
    name="people_every_morning",
    target=people,
    cron_schedule="0 5 * * *",
    default_status=dg.DefaultScheduleStatus.STOPPED,  # start it on the page "Automation"
)
