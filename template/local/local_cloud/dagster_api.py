"""Requests to the GraphQL API of the running Dagster."""

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from local_cloud.processes import ProcessError, local_opener

_RUNS_IN_PROGRESS = """
query ($before: Float!) {
  runsOrError(filter: {statuses: [STARTING, STARTED, CANCELING], updatedBefore: $before}) {
    ... on Runs { results { runId } }
    ... on PythonError { message }
  }
}
"""
_MARK_AS_CANCELED = """
mutation ($runIds: [String!]!) {
  terminateRuns(runIds: $runIds, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename }
}
"""


def query_dagster(dagster_url: str, query: str, **variables: object) -> dict[str, Any]:
    """The response to a query or a mutation, with `data`, and `errors` if there are any.

    Args:
        dagster_url: The URL of the web page, without a slash at the end.
        query: The query.
        variables: Its variables.

    Raises:
        OSError: Dagster does not respond.
    """
    request = urllib.request.Request(
        f"{dagster_url}/graphql",
        data=json.dumps({"query": query, "variables": variables}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with local_opener().open(request, timeout=60) as response:
        result: dict[str, Any] = json.load(response)
    return result


def cancel_interrupted_runs(dagster_url: str, started: float) -> list[str]:
    """Mark the runs as canceled that were in progress when an earlier Dagster ended.

    Their processes have ended, too. Dagster would show the runs as in progress forever, since its
    launcher for one machine cannot see whether the process of a run is alive.

    Args:
        dagster_url: The URL of the web page, without a slash at the end.
        started: When this Dagster was started, in seconds since 1970.

    Returns:
        The IDs of the runs.

    Raises:
        ProcessError: Dagster does not respond.
    """
    try:
        found = query_dagster(dagster_url, _RUNS_IN_PROGRESS, before=started)
        runs: Mapping[str, Any] = (found.get("data") or {}).get("runsOrError", {})
        run_ids = [each["runId"] for each in runs.get("results", ())]
        if run_ids:
            query_dagster(dagster_url, _MARK_AS_CANCELED, runIds=run_ids)
    except OSError as error:
        raise ProcessError(f"Dagster does not respond: {error}") from error
    return run_ids
