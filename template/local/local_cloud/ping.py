"""Calls the function from Dagster with a task that does nothing: for `just doctor`.

Runs in the orchestrator's environment: `python -m local_cloud.ping`. Prints a JSON object with
`token` and `round_trip`: an error, or null.
"""

import importlib
import json

import dagster as dg
from local_cloud.project import root_module
from local_cloud.results import reason

from gcp_pipes.orchestrator.auth import CredentialsError, http_session


def ping(package: str) -> dict[str, str | None]:
    """Get an identity token; then call the function, and read its messages.

    Args:
        package: The name of the orchestrator's package.

    Returns:
        `token` and `round_trip`: an error, or None.
    """
    settings = importlib.import_module(f"{package}.settings").Settings.from_environment()
    try:
        http_session(
            settings.function_url,
            audience=settings.function_audience,
            impersonate=settings.impersonate_service_account,
        ).close()
    except CredentialsError as error:
        return {"token": str(error), "round_trip": None}
    return {"token": None, "round_trip": call_function(package)}


def call_function(package: str) -> str | None:
    """Call the function in a run of its own, in memory.

    Args:
        package: The name of the orchestrator's package.

    Returns:
        The reason why the run failed, or None.
    """
    resources = importlib.import_module(f"{package}.defs.resources").resources().resources
    client = importlib.import_module(f"{package}.defs.function_client").function_client().resources

    @dg.op(required_resource_keys={"settings", "pipes_function_client"})
    def call(context: dg.OpExecutionContext) -> None:
        context.resources.pipes_function_client.run(
            context=context,
            function_url=context.resources.settings.function_url,
            event={"task": "ping"},
        )

    @dg.job(resource_defs={**resources, **client})
    def round_trip() -> None:
        call()

    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        result = round_trip.execute_in_process(instance=instance, raise_on_error=False)
    failures = [event for event in result.all_events if event.is_failure]
    return reason(failures[0]) if failures else None


if __name__ == "__main__":
    print(json.dumps(ping(root_module())))
