"""Canaries: they fall silent when Dagster changes a part of it that has no public name.

If one fails with a new version of Dagster, look for the part in its sources, mend
`pipes/dagster_internals.py`, and only then allow that version in `pyproject.toml`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
from dagster_pipes import PipesContextData

RANGE = {
    "dagster/asset_partition_range_start": "a",
    "dagster/asset_partition_range_end": "b",
}


@dg.asset
def above() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(data_version=dg.DataVersion("7"))


def materialize(
    instance: dg.DagsterInstance, asset: dg.AssetsDefinition, **tags: str
) -> dg.ExecuteInProcessResult:
    return dg.materialize([asset], instance=instance, tags=tags)


def test_no_other_module_imports_such_parts(dagster_internals: ModuleType) -> None:
    file = Path(str(dagster_internals.__file__))
    package = file.parent.parent
    importing = {
        path
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) dagster[a-z_]*\._", path.read_text(), re.MULTILINE)
    }
    assert importing == {file}


def test_the_tags_of_a_materialization_are_as_dagster_makes_them(
    dagster_internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    made: dict[str, str] = {}

    @dg.asset(deps=[above], code_version="3")
    def below(context: dg.AssetExecutionContext) -> None:
        key = context.asset_key
        made.update(dagster_internals.materialization_tags(context, key, "unused", None))

    materialize(instance, above)
    [event] = materialize(instance, below).get_asset_materialization_events()

    assert made == event.step_materialization_data.materialization.tags
    assert made["dagster/code_version"] == "3"


def test_the_data_version_of_a_materialization_is_what_the_function_said(
    dagster_internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    made: list[dict[str, str]] = []

    @dg.asset(deps=[above])
    def below(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        version = dg.DataVersion("said")
        key = context.asset_key
        made.append(dagster_internals.materialization_tags(context, key, "unused", version))
        return dg.MaterializeResult(data_version=version)

    materialize(instance, above)
    [event] = materialize(instance, below).get_asset_materialization_events()

    assert made == [event.step_materialization_data.materialization.tags]


def test_upstream_data_versions_are_known(
    dagster_internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    found: list[object] = []

    @dg.asset(deps=[above])
    def below(context: dg.AssetExecutionContext) -> None:
        found.append(dagster_internals.upstream_data_versions(context))

    materialize(instance, above)
    materialize(instance, below)

    assert found == [{above.key: "7"}]


def test_a_result_can_be_without_a_further_event(
    dagster_internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    @dg.asset(
        partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def reported(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield dg.AssetMaterialization(context.asset_key, partition="a")
        yield dg.MaterializeResult(metadata=dagster_internals.NO_FURTHER_EVENT)

    result = materialize(instance, reported, **RANGE)

    assert result.success
    [event] = result.get_asset_materialization_events()
    assert event.partition == "a"


def test_the_context_of_a_run_is_what_pipes_expects(
    dagster_internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    found: list[dict[str, Any]] = []

    @dg.asset
    def asset(context: dg.AssetExecutionContext) -> None:
        found.append(dagster_internals.build_external_execution_context_data(context, {"a": 1}))

    result = materialize(instance, asset)

    [data] = found
    assert data.keys() == PipesContextData.__annotations__.keys()
    assert (data["asset_keys"], data["run_id"]) == (["asset"], result.run_id)
    assert data["extras"] == {"a": 1}


def test_the_outputs_of_an_op_are_the_assets_and_checks_that_it_yields(
    dagster_internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    found: dict[str, object] = {}

    @dg.op
    def prepare(context: dg.OpExecutionContext) -> int:
        found["prepare"] = dagster_internals.keys_of_outputs(context)
        return 1

    @dg.op
    def make(context: dg.OpExecutionContext, prepared: int) -> int:
        found["make"] = dagster_internals.keys_of_outputs(context)
        return prepared

    @dg.graph_asset
    def made() -> Any:
        return make(prepare())

    @dg.asset_check(asset=made)
    def good(context: dg.OpExecutionContext) -> dg.AssetCheckResult:
        found["good"] = dagster_internals.keys_of_outputs(context)
        return dg.AssetCheckResult(passed=True)

    job = dg.define_asset_job("job", dg.AssetSelection.all() | dg.AssetSelection.all_asset_checks())
    definitions = dg.Definitions(assets=[made], asset_checks=[good], jobs=[job])
    assert definitions.resolve_job_def("job").execute_in_process(instance=instance).success

    check = dg.AssetCheckKey(made.key, "good")
    assert found == {"prepare": set(), "make": {made.key}, "good": {check}}


def test_a_direct_call_is_known(
    dagster_internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    found: list[object] = []

    @dg.asset
    def asset(context: dg.AssetExecutionContext) -> None:
        found.append(dagster_internals.is_called_directly(context))
        found.append(dagster_internals.is_called_directly(context.op_execution_context))

    asset(dg.build_asset_context())
    materialize(instance, asset)

    assert found == [True, True, False, False]


def test_metadata_of_pipes_becomes_dagsters(dagster_internals: ModuleType) -> None:
    external = {
        "rows": {"raw_value": 1, "type": "int"},
        "anything": {"raw_value": "text", "type": "__infer__"},
    }
    assert dagster_internals.metadata_map_from_external(external) == {
        "rows": dg.MetadataValue.int(1),
        "anything": dg.MetadataValue.text("text"),
    }
