"""`CloudFunctionAsset`: assets by a few lines of YAML, and what is said of a wrong line."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.testing import DefsFolderSandbox, create_defs_folder_sandbox
from faults import FaultProxy
from my_data_platform.components import CloudFunctionAsset
from my_data_platform.pipes import PipesCloudFunctionClient
from my_data_platform.settings import Settings

ALL_FIELDS = """\
  assets:
    - key: shop/visits
      description: Who came.
      deps: [people]
      group_name: shop
      owners: [someone@example.com, "team:shop"]
      tags: { tier: gold }
      kinds: [polars]
      code_version: v3
      partitions_def: { type: daily, start_date: "2024-01-01", end_date: "2024-01-31" }
      automation_condition: "{{ dg.AutomationCondition.on_cron('0 6 * * *') }}"
      freshness_policy: "{{ dg.FreshnessPolicy.time_window(datetime.timedelta(days=1)) }}"
      metadata: { shelf: 7 }
  task: scripted
  event: { rows: 10, nested: { day: "{{ 1 + 1 }}" } }
  function: reports
  timeout: 540
  retry_timeout: 0
  checks:
    - { name: no_doubt, asset: shop/visits, blocking: true }
  max_in_flight: 100
  pool: functions
  run_tags: [team]
"""
ONE = """\
  assets:
    - key: thing
  task: scripted
"""
PARTITIONED = """\
  assets:
    - key: thing
      partitions_def: { type: daily, start_date: "2024-01-01" }
  task: scripted
"""

Resources = Mapping[str, Any]


@contextmanager
def loaded(
    attributes: str, component: type[CloudFunctionAsset] = CloudFunctionAsset
) -> Iterator[tuple[Any, dg.Definitions]]:
    """The component, and its definitions, of a `defs.yaml` with these attributes."""
    with create_defs_folder_sandbox() as sandbox:
        write(sandbox, attributes, component)
        with sandbox.load_component_and_build_defs(defs_path=Path("thing")) as found:
            yield found


def write(sandbox: DefsFolderSandbox, attributes: str, component: type[CloudFunctionAsset]) -> None:
    folder = sandbox.scaffold_component(component_cls=component, defs_path="thing")
    kind = f"{component.__module__}.{component.__qualname__}"
    (folder / "defs.yaml").write_text(f"type: {kind}\n\nattributes:\n{attributes}")


@pytest.fixture
def resources(client: PipesCloudFunctionClient, calls: FaultProxy) -> Resources:
    """As in `defs/resources.py`, for the function of the tests."""
    settings = Settings(
        function_url=calls.url,
        lake_uri="/lake",
        messages_bucket="unused",
        function_timeout=60,
        function_audience=None,
        impersonate_service_account=None,
    )
    return {"settings": settings, "pipes_function_client": client}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        yield instance


def test_a_few_lines_define_all_that_an_asset_can_have() -> None:
    with loaded(ALL_FIELDS) as (component, definitions):
        [asset] = assets(definitions)
    spec = asset.get_asset_spec(dg.AssetKey(["shop", "visits"]))

    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey("people")]
    assert (spec.group_name, spec.description, spec.code_version) == ("shop", "Who came.", "v3")
    assert spec.owners == ["someone@example.com", "team:shop"]
    assert spec.tags["tier"] == "gold"
    assert spec.kinds == {"polars"}
    assert spec.metadata["shelf"] == 7
    assert spec.partitions_def == dg.DailyPartitionsDefinition(
        "2024-01-01", end_date="2024-01-31", timezone="UTC"
    )
    assert spec.automation_condition == dg.AutomationCondition.on_cron("0 6 * * *")
    assert spec.freshness_policy is not None
    [check] = asset.check_specs
    assert (check.name, check.blocking) == ("no_doubt", True)
    assert asset.backfill_policy == dg.BackfillPolicy.single_run()
    assert asset.op.pool == "functions"
    assert component.event == {"rows": 10, "nested": {"day": 2}}
    assert (component.function, component.max_in_flight) == ("reports", 100)
    assert (component.timeout, component.retry_timeout) == (540, 0)
    assert component.run_tags == ["team"]


def test_every_field_is_described_and_has_an_example() -> None:
    fields = CloudFunctionAsset.model().model_json_schema()["properties"]

    assert len(fields) == 10
    for name, field in fields.items():
        assert field.get("description"), name
        assert field.get("examples"), name


def test_one_call_materializes_several_assets_and_evaluates_their_checks(
    resources: Resources, instance: dg.DagsterInstance, calls: FaultProxy
) -> None:
    attributes = """\
  assets:
    - key: one
    - key: other
      deps: [one]
  task: scripted
  event:
    assets: [one, other]
    checks:
      - { asset_key: one, check_name: fine, passed: true }
      - asset_key: other
        check_name: fine
        passed: false
        severity: WARN
        metadata: { off_by: 3 }
  checks:
    - { name: fine, asset: one }
    - { name: fine, asset: other }
"""
    with loaded(attributes) as (_, definitions):
        result = materialize(definitions, resources, instance)

    assert result.success
    assert len(calls.seen) == 1
    events = result.get_asset_materialization_events()
    assert [event.asset_key for event in events] == [dg.AssetKey("one"), dg.AssetKey("other")]
    checks = {
        each.asset_key.to_user_string(): (each.passed, each.severity)
        for each in result.get_asset_check_evaluations()
    }
    assert checks == {
        "one": (True, dg.AssetCheckSeverity.ERROR),
        "other": (False, dg.AssetCheckSeverity.WARN),
    }


@pytest.mark.parametrize("told", [["one", "other"], ["one"]])
def test_an_asset_that_may_be_skipped_is_materialized_only_if_it_is_reported(
    told: list[str], resources: Resources, instance: dg.DagsterInstance
) -> None:
    attributes = f"""\
  assets:
    - key: one
    - key: other
      skippable: true
  task: scripted
  event: {{ assets: {told} }}
"""
    with loaded(attributes) as (_, definitions):
        result = materialize(definitions, resources, instance)

    assert result.success, result.failure_data_for_node("one")
    events = result.get_asset_materialization_events()
    assert [event.asset_key for event in events] == [dg.AssetKey(key) for key in told]


def test_a_run_of_many_partitions_calls_for_each(
    resources: Resources, instance: dg.DagsterInstance, calls: FaultProxy
) -> None:
    with loaded(PARTITIONED) as (_, definitions):
        result = materialize(
            definitions,
            resources,
            instance,
            tags={
                "dagster/asset_partition_range_start": "2024-01-01",
                "dagster/asset_partition_range_end": "2024-01-05",
            },
        )

    assert result.success
    assert len(calls.seen) == 5
    made = {event.partition for event in result.get_asset_materialization_events()}
    assert made == {f"2024-01-0{day}" for day in range(1, 6)}


def test_the_function_learns_of_the_tags_that_are_named(
    resources: Resources, instance: dg.DagsterInstance
) -> None:
    attributes = f"{ONE}  run_tags: [team]\n  event: {{ tell_context: true }}\n"
    with loaded(attributes) as (_, definitions):
        result = materialize(
            definitions, resources, instance, tags={"team": "shop", "secret": "no"}
        )

    said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    [context] = [message for message in said if '"run_tags"' in message]
    assert '"run_tags": {"team": "shop"}' in context


class Shouting(CloudFunctionAsset):
    """An owner's own component."""

    def get_asset_spec(self, spec: dg.AssetSpec, context: dg.ComponentLoadContext) -> dg.AssetSpec:
        spec = super().get_asset_spec(spec, context)
        return spec.replace_attributes(group_name="loud").merge_attributes(tags={"volume": "11"})

    def get_event(
        self, context: dg.AssetExecutionContext, partition_key: str | None
    ) -> Mapping[str, Any]:
        inputs = super().get_event(context, partition_key)
        return {**inputs, "metadata": {"day": partition_key, "lake": inputs["dl_bucket"]}}


@pytest.mark.parametrize(
    ("attributes", "day"), [(ONE, None), (PARTITIONED, "2024-01-02")], ids=["plain", "partitioned"]
)
def test_a_subclass_can_make_the_spec_and_the_event(
    attributes: str, day: str | None, resources: Resources, instance: dg.DagsterInstance
) -> None:
    with loaded(attributes, Shouting) as (_, definitions):
        result = materialize(definitions, resources, instance, partition_key=day)
        [spec] = assets(definitions)[0].specs

    assert (spec.group_name, spec.tags["volume"]) == ("loud", "11")
    [event] = result.get_asset_materialization_events()
    metadata = event.step_materialization_data.materialization.metadata
    assert (metadata["day"].value, metadata["lake"].value) == (day, "/lake")


def with_asset(line: str) -> str:
    return ONE.replace("    - key: thing\n", f"    - key: thing\n      {line}\n")


WRONG = {
    "unknown field": (f"{ONE}  colour: red\n", 7, "colour", "Extra inputs"),
    "unknown field of an asset": (with_asset("colour: red"), 4, "assets.+colour", "Extra inputs"),
    "no asset": ("  assets: []\n  task: scripted\n", 4, "assets", "at least 1 item"),
    "no key": ("  assets:\n    - deps: [a]\n  task: scripted\n", 4, "assets.+key", "required"),
    "no task": ("  assets:\n    - key: thing\n", 3, "task", "required"),
    "nothing": ("", 3, "attributes", "`assets` and `task` are missing"),
    "text for assets": ("  assets: thing\n  task: scripted\n", 4, "assets", "must be a list"),
    "text for deps": (with_asset("deps: people"), 6, "deps", "must be a list; it is 'people'"),
    "text for kinds": (with_asset("kinds: polars"), 6, "kinds", "must be a list; it is 'polars'"),
    "text for owners": (with_asset("owners: me@a.com"), 6, "owners", "must be a list"),
    "text for checks": (f"{ONE}  checks: all\n", 7, "checks", "must be a list; it is 'all'"),
    "text for tags": (f"{ONE}  run_tags: team\n", 7, "run_tags", "must be a list of names"),
    "a task among the inputs": (f"{ONE}  event: {{task: it}}\n", 7, "task", "named by `task`"),
    "text for an event": (f"{ONE}  event: rows\n", 7, "event", "each with its value"),
    "an owner that is none": (with_asset("owners: [me]"), 4, "assets", "Invalid owner 'me'"),
    "a group that is none": (with_asset("group_name: a b"), 4, "assets", "valid asset group"),
    "unknown partitions": (
        with_asset("partitions_def: { type: dayly, start_date: '2024-01-01' }"),
        4,
        "partitions_def.+type",
        "Input should be 'daily'",
    ),
    "a date that is none": (
        with_asset("partitions_def: { type: daily, start_date: '2024-13-01' }"),
        6,
        "partitions_def",
        "'2024-13-01' does not match",
    ),
    "unknown condition": (
        with_asset("automation_condition: '{{ dg.AutomationCondition.sometimes() }}'"),
        6,
        "automation_condition",
        "while evaluating template",
    ),
    "unknown name in a template": (f"{ONE}  timeout: '{{{{ soon }}}}'\n", 7, "timeout", "soon"),
    "asset twice": ("  assets: [{key: a}, {key: a}]\n  task: b\n", 4, "assets", "but once"),
    "two kinds of partitions": (
        PARTITIONED.replace("  task", "    - key: other\n  task"),
        4,
        "assets",
        "the same `partitions_def`",
    ),
    "task that is none": (ONE.replace("scripted", "../it"), 6, "task", "'../it'"),
    "function that is none": (f"{ONE}  function: http://a\n", 7, "function", "an https URL, or"),
    "timeout that is none": (f"{ONE}  timeout: soon\n", 7, "timeout", "it is 'soon'"),
    "timeout too long": (f"{ONE}  timeout: 3601\n", 7, "timeout", "less than or equal to 3600"),
    "timeout too long, by a template": (
        f"{ONE}  timeout: '{{{{ 60 * 61 }}}}'\n",
        7,
        "timeout",
        "up to 3600; it is 3660",
    ),
    "negative time": (f"{ONE}  retry_timeout: -1\n", 7, "retry_timeout", "greater than or equal"),
    "none in flight": (f"{ONE}  max_in_flight: 0\n", 7, "max_in_flight", "greater than or equal"),
    "pool that is none": (f"{ONE}  pool: a b\n", 7, "pool", "without blanks; it is 'a b'"),
    "check of another asset": (
        f"{ONE}  checks:\n    - {{ name: fine, asset: other }}\n",
        8,
        "checks.0.asset",
        "other is none of the assets here: thing.",
    ),
    "check that is no name": (
        f"{ONE}  checks:\n    - name: so so\n      asset: thing\n",
        8,
        "checks.0.name",
        "'so so' is no name",
    ),
    "check twice": (
        f"{ONE}  checks:\n    - &fine {{ name: fine, asset: thing }}\n    - *fine\n",
        7,
        "checks",
        "but once",
    ),
}


@pytest.mark.parametrize(
    ("attributes", "line", "field", "problem"), list(WRONG.values()), ids=list(WRONG)
)
def test_a_wrong_file_is_refused_with_its_line_and_field(
    attributes: str, line: int, field: str, problem: str
) -> None:
    with pytest.raises(Exception, match="thing") as error, loaded(attributes):
        pass

    text = str(error.value.__cause__ or error.value)
    assert re.search(rf"defs\.yaml:{line}\b.*{field}|{field}.*defs\.yaml:{line}\b", text), text
    assert problem in text


def test_a_task_that_the_function_does_not_have_is_refused_with_those_that_it_has() -> None:
    with create_defs_folder_sandbox() as sandbox:
        project = sandbox.project_root / "orchestrator"
        tasks = sandbox.project_root / "cloud_function" / "tasks"
        tasks.mkdir(parents=True)
        for name in ("people", "visits", "_private"):
            (tasks / f"{name}.py").touch()
        write(sandbox, ONE, CloudFunctionAsset)
        load = moved(sandbox, project)

        with pytest.raises(Exception, match="thing") as error:
            load()
        (tasks / "scripted.py").write_text(
            '"""Some task."""\n\n\ndef run(pipes, event):\n    ...\n'
        )
        [asset] = assets(load())

    text = str(error.value.__cause__)
    assert re.search(r"defs\.yaml:6 - attributes\.task", text)
    assert "There is no task 'scripted' in cloud_function/tasks/" in text
    assert "The tasks are: people, visits." in text
    references = asset.metadata_by_key[dg.AssetKey("thing")]["dagster/code_references"]
    places = {
        (reference.file_path, reference.line_number)
        for reference in references.code_references
        if isinstance(reference, dg.LocalFileCodeReference)
    }
    assert (str(tasks / "scripted.py"), 4) in places


def moved(sandbox: DefsFolderSandbox, project: Any) -> Callable[[], dg.Definitions]:
    """Put the sandbox's project into a folder beside others; return what loads it from there."""
    project.mkdir()
    for part in ("src", "dg.toml"):
        (sandbox.project_root / part).rename(project / part)
    there = DefsFolderSandbox(
        project_root=project,
        project_name=sandbox.project_name,
        defs_folder_path=project / sandbox.defs_folder_path.relative_to(sandbox.project_root),
    )

    def load() -> dg.Definitions:
        with there.build_all_defs() as definitions:
            return definitions

    return load


def assets(definitions: dg.Definitions) -> list[dg.AssetsDefinition]:
    return [each for each in definitions.assets or () if isinstance(each, dg.AssetsDefinition)]


def materialize(
    definitions: dg.Definitions,
    resources: Resources,
    instance: dg.DagsterInstance,
    **options: Any,
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        assets(definitions),
        instance=instance,
        resources=resources,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        **options,
    )


def test_an_asset_of_the_component_runs_in_a_job_with_a_hook_and_by_a_direct_call(
    resources: Resources, instance: dg.DagsterInstance
) -> None:
    heard: list[str] = []

    @dg.success_hook
    def tell(context: dg.HookContext) -> None:
        heard.append(context.step_key)

    with loaded(ONE) as (_, definitions):
        job = dg.define_asset_job("job", [dg.AssetKey("thing")], hooks={tell})
        with_job = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
        bound = dg.Definitions.merge(with_job, dg.Definitions(resources=resources))
        run = bound.resolve_job_def("job").execute_in_process(instance=instance)
        [asset] = assets(definitions)
        directly: Any = asset
        [result] = list(directly(context=dg.build_asset_context(resources=dict(resources))))

    assert run.success
    assert heard == ["thing"]
    assert result.asset_key == dg.AssetKey("thing")
