"""Canaries: they fail when Dagster changes a part that has no public name.

If one fails with a new version of Dagster, look for the part in its sources, correct
`gcp_pipes/orchestrator/dagster_internals.py`, and only then allow that version in `pyproject.toml`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import dagster as dg
from dagster.components.testing import create_defs_folder_sandbox
from dagster_pipes import PipesContextData, PipesMetadataValue

from gcp_pipes.orchestrator import dagster_internals

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


def test_no_other_module_imports_private_parts_of_dagster() -> None:
    file = Path(str(dagster_internals.__file__))
    package = file.parent.parent
    importing = {
        path
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) dagster[a-z_]*\._", path.read_text(), re.MULTILINE)
    }
    assert importing == {file}


def test_the_tags_of_a_materialization_are_as_dagster_makes_them(
    instance: dg.DagsterInstance,
) -> None:
    made: dict[str, str] = {}

    @dg.asset(deps=[above], code_version="3")
    def below(context: dg.AssetExecutionContext) -> None:
        step, key = context.op_execution_context, context.asset_key
        made.update(dagster_internals.materialization_tags(step, key, "unused", None))

    materialize(instance, above)
    [event] = materialize(instance, below).get_asset_materialization_events()

    assert made == event.step_materialization_data.materialization.tags
    assert made["dagster/code_version"] == "3"


def test_the_data_version_of_a_materialization_is_what_the_function_reported(
    instance: dg.DagsterInstance,
) -> None:
    made: list[Mapping[str, str]] = []

    @dg.asset(deps=[above])
    def below(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        version = dg.DataVersion("said")
        step, key = context.op_execution_context, context.asset_key
        made.append(dagster_internals.materialization_tags(step, key, "unused", version))
        return dg.MaterializeResult(data_version=version)

    materialize(instance, above)
    [event] = materialize(instance, below).get_asset_materialization_events()

    assert made == [event.step_materialization_data.materialization.tags]


def test_the_upstream_data_versions_are_found(instance: dg.DagsterInstance) -> None:
    found: list[object] = []

    @dg.asset(deps=[above])
    def below(context: dg.AssetExecutionContext) -> None:
        found.append(dagster_internals.upstream_data_versions(context.op_execution_context))

    materialize(instance, above)
    materialize(instance, below)

    assert found == [{above.key: "7"}]


def test_a_result_can_add_no_event(instance: dg.DagsterInstance) -> None:
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


def test_the_context_of_a_run_is_what_pipes_expects(instance: dg.DagsterInstance) -> None:
    found: list[PipesContextData] = []

    @dg.asset
    def asset(context: dg.AssetExecutionContext) -> None:
        found.append(dagster_internals.build_external_execution_context_data(context, {"a": 1}))

    result = materialize(instance, asset)

    [data] = found
    assert data.keys() == PipesContextData.__annotations__.keys()
    assert (data["asset_keys"], data["run_id"]) == (["asset"], result.run_id)
    assert data["extras"] == {"a": 1}


def test_engine_events_starts_and_errors_of_a_step_are_found(
    instance: dg.DagsterInstance,
) -> None:
    starts: list[int] = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def retried(context: dg.AssetExecutionContext) -> None:
        step = context.op_execution_context
        starts.append(dagster_internals.start_count(instance, step.run_id, "retried"))
        metadata = {"answer": dg.MetadataValue.int(42)}
        dagster_internals.report_engine_event(instance, step.run, "retried", "Noted", metadata)
        if step.retry_number == 0:
            raise ValueError

    entries = instance.all_logs(materialize(instance, retried).run_id)
    noted = [entry for entry in entries if entry.message == "Noted"]
    [retry] = [
        entry
        for entry in entries
        if entry.dagster_event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY
    ]

    assert starts == [1, 2]
    assert [entry.step_key for entry in noted] == ["retried"] * 2
    assert dagster_internals.engine_event_metadata(noted[0])["answer"].value == 42
    assert "ValueError" in dagster_internals.error_classes(retry)
    assert dagster_internals.engine_event_metadata(retry) == {}
    assert dagster_internals.error_classes(noted[0]) == []


def test_an_instance_resumes_no_runs_by_default(instance: dg.DagsterInstance) -> None:
    assert not dagster_internals.may_resume_runs(instance)


def test_the_outputs_of_an_op_are_the_assets_and_checks_that_it_yields(
    instance: dg.DagsterInstance,
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


def test_a_direct_call_is_recognized(instance: dg.DagsterInstance) -> None:
    found: list[object] = []

    @dg.asset
    def asset(context: dg.AssetExecutionContext) -> None:
        found.append(dagster_internals.is_called_directly(context))
        found.append(dagster_internals.is_called_directly(context.op_execution_context))

    asset(dg.build_asset_context())
    materialize(instance, asset)

    assert found == [True, True, False, False]


def test_metadata_of_pipes_becomes_dagsters() -> None:
    external: Mapping[str, PipesMetadataValue] = {
        "rows": {"raw_value": 1, "type": "int"},
        "anything": {"raw_value": "text", "type": "__infer__"},
    }
    assert dagster_internals.metadata_map_from_external(external) == {
        "rows": dg.MetadataValue.int(1),
        "anything": dg.MetadataValue.text("text"),
    }


@dataclass
class Part(dg.Resolvable):
    """What a part of a component's YAML may hold."""

    text: str
    names: list[str] | None = None
    condition: dg.Injected[dg.AutomationCondition[Any]] | None = None


def test_the_fields_of_a_model_have_the_types_that_were_declared() -> None:
    fields = dagster_internals.yaml_fields(Part.model())

    assert list(fields) == ["text", "names", "condition"]
    assert [field.is_required for field in fields.values()] == [True, False, False]
    assert all(field.takes_template for field in fields.values())
    assert [field.needs_template for field in fields.values()] == [False, False, True]
    assert fields["names"].kind == list[str] | None
    given = {"text": "any", "names": "text"}
    assert Part.model()(**given).model_dump(exclude_unset=True) == given  # for templates


def test_the_fields_of_any_other_model_are_its_own() -> None:
    fields = dagster_internals.yaml_fields(dagster_internals.ComponentFileModel)

    assert {"type", "attributes", "requirements", "post_processing"} <= fields.keys()
    assert not any(field.takes_template for field in fields.values())


def test_each_document_of_a_project_is_found_with_its_lines() -> None:
    document = "type: dagster.DefinitionsComponent\nattributes: { path: a.py }\n"
    with create_defs_folder_sandbox() as sandbox:
        (sandbox.defs_folder_path / "thing").mkdir()
        file = sandbox.defs_folder_path / "thing" / "defs.yaml"
        file.write_text(f"{document}---\n{document}")
        with sandbox.build_component_tree() as tree:
            documents = list(dagster_internals.yaml_documents(tree))

    for number, (component, content, context) in enumerate(documents):
        assert component is dg.DefinitionsComponent
        assert content.value["attributes"] == {"path": "a.py"}
        position = content.source_position_tree.lookup(["attributes", "path"])
        assert position is not None
        assert position.start.line in (2, 5)
        assert dagster_internals.yaml_document(context) == documents[number]
    assert len(documents) == 2


def test_dg_check_defs_is_recognized() -> None:
    @click.group
    def dg() -> None:
        pass

    @dg.group
    def check() -> None:
        pass

    @check.command
    def defs() -> None:
        found.append(dagster_internals.is_checking_definitions())

    @check.command
    def yaml() -> None:
        found.append(dagster_internals.is_checking_definitions())

    found: list[bool] = [dagster_internals.is_checking_definitions()]
    dg.main(["check", "defs"], prog_name="dg", standalone_mode=False)
    dg.main(["check", "yaml"], prog_name="dg", standalone_mode=False)

    assert found == [False, True, False]
