"""How a call of the function ends in Dagster, when it does not end well."""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pytest
from web_server import Response, web_server


def materialize(
    client: dg.PipesClient,
    instance: dg.DagsterInstance,
    url: str,
    event: Mapping[str, Any],
) -> dg.ExecuteInProcessResult:
    @dg.asset
    def calling(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return client.run(context=context, function_url=url, event=event).get_materialize_result()

    return dg.materialize([calling], instance=instance, raise_on_error=False)


def failure(result: dg.ExecuteInProcessResult) -> Any:
    """Why the step `calling` failed. Nothing has been materialized."""
    assert not result.success
    assert not result.get_asset_materialization_events()
    data: Any = result.failure_data_for_node("calling")
    return data.user_failure_data


def test_an_unknown_task_fails_the_step_and_the_call_can_be_traced(
    pipes_function_client: dg.PipesClient,
    instance: dg.DagsterInstance,
    settings: Mapping[str, str],
) -> None:
    result = materialize(pipes_function_client, instance, settings["FUNCTION_URL"], {})

    assert "There is no task 'calling'" in failure(result).description
    table = str(failure(result).metadata["cloud_function_call"].value)
    assert f"| url | {settings['FUNCTION_URL']} |" in table
    # What came before the failure is kept.
    logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
    [trace] = (text for text in logged if text.startswith("Cloud function trace: "))
    assert f"| trace | {trace.split(': ')[1]} |" in table


def test_an_event_that_is_not_json_fails_the_step_before_any_call(
    pipes_function_client: dg.PipesClient, instance: dg.DagsterInstance
) -> None:
    result = materialize(pipes_function_client, instance, "http://127.0.0.1:1", {"day": object()})

    assert (
        "input 'day' is not JSON serializable: Object of type object" in failure(result).description
    )


def test_an_unreachable_function_fails_the_step(
    pipes_function_client: dg.PipesClient, instance: dg.DagsterInstance
) -> None:
    result = materialize(pipes_function_client, instance, "http://127.0.0.1:1", {})

    assert "The cloud function could not be reached: " in failure(result).description
    assert "Connection refused" in failure(result).description


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ((403, b"<html>Forbidden</html>"), "responded 403: Forbidden. The request had no"),
        ((302, b""), "responded 302: Found, a redirect without a target. Redirects are not"),
        ((404, b""), "404: Not Found. Check that FUNCTION_URL is the function's own URL"),
        ((500, json.dumps({"error": "out of luck"}).encode()), "responded 500: out of luck"),
        ((200, b"OK"), "sent no message. The messages bucket is gs://"),
    ],
)
def test_a_response_that_is_not_from_a_pipes_function_fails_the_step(
    response: Response,
    reason: str,
    pipes_function_client: dg.PipesClient,
    instance: dg.DagsterInstance,
) -> None:
    with web_server(response) as server:
        result = materialize(pipes_function_client, instance, f"http://{server.address}", {})

    assert reason in failure(result).description


def test_an_op_can_call_the_function_too(
    pipes_function_client: dg.PipesClient,
    instance: dg.DagsterInstance,
    settings: Mapping[str, str],
) -> None:
    @dg.op
    def calling(context: dg.OpExecutionContext) -> None:
        pipes_function_client.run(
            context=context, function_url=settings["FUNCTION_URL"], event={"task": "nonsense"}
        )

    @dg.job
    def job() -> None:
        calling()

    result = job.execute_in_process(instance=instance, raise_on_error=False)

    assert "There is no task 'nonsense'" in failure(result).description
