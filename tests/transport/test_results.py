"""What a function may report beside the materialization of one asset."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from faults import FaultProxy
from gcp_pipes.orchestrator import PipesCloudFunctionClient

Materialize = Any


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def materialize(
    client: PipesCloudFunctionClient, calls: FaultProxy, instance: dg.DagsterInstance
) -> Materialize:
    """Materializes assets by one call of the task `scripted`, with inputs by name."""

    def materialize(
        *specs: dg.AssetSpec, check_specs: list[dg.AssetCheckSpec] | None = None, **event: Any
    ) -> dg.ExecuteInProcessResult:
        @dg.multi_asset(specs=specs, check_specs=check_specs)
        def calling(context: dg.AssetExecutionContext) -> Iterator[Any]:
            done = client.run(
                context=context, function_url=calls.url, event={"task": "scripted", **event}
            )
            context.log.info(f"custom: {done.get_custom_messages()}")
            yield from done.get_results()

        return dg.materialize([calling], instance=instance, raise_on_error=False)

    return materialize


def failure(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    data: Any = result.failure_data_for_node("calling")
    return str(data.user_failure_data.description)


TWO = dg.AssetSpec("one"), dg.AssetSpec("other", deps=["one"])


def test_one_call_materializes_several_assets(materialize: Materialize) -> None:
    result = materialize(*TWO, assets=["one", "other"])

    events = result.get_asset_materialization_events()
    assert [event.asset_key.to_user_string() for event in events] == ["one", "other"]


def test_a_missing_asset_is_an_error_with_its_name(materialize: Materialize) -> None:
    assert "did not report other as materialized" in failure(materialize(*TWO, assets=["one"]))


def test_a_check_is_reported_with_its_severity_and_metadata(materialize: Materialize) -> None:
    check = {
        "check_name": "full",
        "asset_key": "one",
        "passed": False,
        "severity": "WARN",
        "metadata": {"rows": 0},
    }

    result = materialize(
        *TWO,
        check_specs=[dg.AssetCheckSpec("full", asset="one")],
        assets=["one", "other"],
        checks=[check],
    )

    assert result.success
    [evaluation] = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert evaluation.metadata["rows"].value == 0


def test_a_missing_check_is_an_error_with_its_name(materialize: Materialize) -> None:
    result = materialize(
        *TWO, check_specs=[dg.AssetCheckSpec("full", asset="one")], assets=["one", "other"]
    )

    assert "did not report the check one:full. Call `pipes.report_asset_check`" in failure(result)


def test_an_undeclared_check_is_an_error_with_its_name(materialize: Materialize) -> None:
    check = {"check_name": "full", "asset_key": "one", "passed": True}

    result = materialize(*TWO, assets=["one", "other"], checks=[check])

    assert "reported the check one:full, which the asset does not declare" in failure(result)


def test_observations_are_in_the_event_log(
    materialize: Materialize, instance: dg.DagsterInstance
) -> None:
    assert materialize(*TWO, assets=["one", "other"], observed=["seen"]).success

    [record] = instance.fetch_observations(dg.AssetKey("seen"), limit=10).records
    observation = record.event_log_entry.asset_observation
    assert observation is not None
    assert observation.metadata["seen"].value == 1
    assert observation.data_version == "7"


def test_custom_messages_are_returned_to_the_caller(
    materialize: Materialize, instance: dg.DagsterInstance
) -> None:
    result = materialize(*TWO, assets=["one", "other"], custom_messages=[{"a": 1}, "b"])

    logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert "custom: ({'a': 1}, 'b')" in logged
