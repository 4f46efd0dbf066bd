"""`CloudFunctionAsset`: assets defined in YAML, and the errors in the YAML."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import dagster as dg
import pytest
from dagster.components.testing import DefsFolderSandbox, create_defs_folder_sandbox
from defs_files import Resources, assets, loaded, materialize, write
from faults import FaultProxy
from gcp_pipes.components import CloudFunctionAsset
from gcp_pipes.components.checked_component import check_files
from gcp_pipes.components.yaml_errors import DefsYamlError
from gcp_pipes.orchestrator import PipesCloudFunctionClient
from my_data_platform.settings import Settings
from pydantic import Field

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
  configurable: [rows]
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


@pytest.fixture
def resources(client: PipesCloudFunctionClient, calls: FaultProxy) -> Resources:
    """The resources of the project, for the function under test."""
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


def test_yaml_can_set_every_property_of_an_asset() -> None:
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

    assert len(fields) == 11
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


@pytest.mark.parametrize("reported", [["one", "other"], ["one"]])
def test_a_skippable_asset_is_materialized_only_if_it_is_reported(
    reported: list[str], resources: Resources, instance: dg.DagsterInstance
) -> None:
    attributes = f"""\
  assets:
    - key: one
    - key: other
      skippable: true
  task: scripted
  event: {{ assets: {reported} }}
"""
    with loaded(attributes) as (_, definitions):
        result = materialize(definitions, resources, instance)

    assert result.success, result.failure_data_for_node("one")
    events = result.get_asset_materialization_events()
    assert [event.asset_key for event in events] == [dg.AssetKey(key) for key in reported]


def test_a_run_of_many_partitions_makes_a_call_for_each(
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


def test_the_function_receives_the_run_tags_in_the_yaml(
    resources: Resources, instance: dg.DagsterInstance
) -> None:
    attributes = f"{ONE}  run_tags: [team]\n  event: {{ tell_context: true }}\n"
    with loaded(attributes) as (_, definitions):
        result = materialize(
            definitions, resources, instance, tags={"team": "shop", "secret": "no"}
        )

    logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
    [context] = [message for message in logged if '"run_tags"' in message]
    assert '"run_tags": {"team": "shop"}' in context


@pytest.mark.parametrize(("config", "logged"), [({}, 2), ({"lines": 3}, 3)], ids=["no", "some"])
def test_the_config_of_a_run_changes_the_inputs_that_the_yaml_allows(
    config: dict[str, int], logged: int, resources: Resources, instance: dg.DagsterInstance
) -> None:
    attributes = f"{ONE}  event: {{ lines: 2, pause: 0 }}\n  configurable: [lines]\n"
    with loaded(attributes) as (_, definitions):
        result = materialize(
            definitions, resources, instance, run_config={"ops": {"thing": {"config": config}}}
        )
        wrong = {"ops": {"thing": {"config": {"pause": 1}}}}
        with pytest.raises(dg.DagsterInvalidConfigError, match="pause"):
            materialize(definitions, resources, instance, run_config=wrong)

    entries = instance.all_logs(result.run_id)
    assert sum("thing line" in entry.user_message for entry in entries) == logged


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
def test_a_subclass_can_override_the_spec_and_the_event(
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


def with_partitions(definition: str) -> str:
    return with_asset(f"partitions_def: {{ {definition} }}")


START = 'start_date: "2024-01-01"'
WRONG = {
    "unknown input": (
        f"{ONE}  event: {{ rows: 1 }}\n  configurable: [row]\n",
        8,
        "configurable.0",
        "'row' is not an input in `event`. Add it there, with its default. Did you mean rows?",
    ),
    "unknown field": (f"{ONE}  colour: red\n", 7, "colour", "The fields are: assets, task"),
    "misspelled field": (f"{ONE}  maxinflight: 3\n", 7, "maxinflight", "mean max_in_flight?"),
    "misspelled required field": (ONE.replace("task", "taks"), 6, "taks", "Did you mean task?"),
    "field in capitals": (f"{ONE}  Pool: slow\n", 7, "Pool", "Did you mean pool?"),
    "unknown field of an asset": (with_asset("colour: red"), 6, "assets.0.colour", "not a field"),
    "misspelled field of an asset": (with_asset("dep: [a]"), 6, "assets.0.dep", "mean deps?"),
    "misspelled partitions": (
        with_asset(f"partition_def: {{ type: daily, {START} }}"),
        6,
        "assets.0.partition_def",
        "Did you mean partitions_def?",
    ),
    "misspelled field of partitions": (
        with_partitions("type: daily, start_dat: '2024-01-01'"),
        6,
        "partitions_def.start_dat",
        "Did you mean start_date?",
    ),
    "misspelled type of partitions": (
        with_partitions(f"tpye: daily, {START}, hour_offset: 2"),
        6,
        "partitions_def.tpye",
        "Did you mean type?",
    ),
    "field of other partitions": (
        with_partitions(f"type: hourly, {START}, day_offset: 2"),
        6,
        "partitions_def.day_offset",
        "is not a field",
    ),
    "no start of partitions": (
        with_partitions("type: daily"),
        6,
        "partitions_def.start_date",
        "is required",
    ),
    "no whole number of hours": (
        with_partitions(f"type: daily, {START}, hour_offset: noon"),
        6,
        "partitions_def.hour_offset",
        "must be a whole number; it is 'noon'",
    ),
    "text for partitions": (
        with_asset("partitions_def: daily"),
        6,
        "partitions_def",
        "must be a mapping; it is 'daily'",
    ),
    "no text among keys": (
        with_partitions("type: static, partition_keys: [a, 2, c]"),
        6,
        "partitions_def.partition_keys.1",
        "must be text; it is 2.",
    ),
    "misspelled field of a check": (
        f"{ONE}  checks:\n    - {{ name: fine, asset: thing, blockin: true }}\n",
        8,
        "checks.0.blockin",
        "Did you mean blocking?",
    ),
    "no name of a check": (
        f"{ONE}  checks:\n    - name: fine\n      asset: thing\n    - asset: thing\n",
        10,
        "checks.1.name",
        "is required",
    ),
    "neither true nor false": (
        f"{ONE}  checks:\n    - name: fine\n      asset: thing\n      blocking: maybe\n",
        10,
        "checks.0.blocking",
        "must be true or false; it is 'maybe'",
    ),
    "no mapping for an asset": ("  assets: [thing]\n  task: a\n", 4, "assets.0", "with key"),
    "no text among deps": (with_asset("deps: [a, {key: b}]"), 6, "assets.0.deps.1", "must be text"),
    "a list for a tag": (with_asset("tags: { tier: [a] }"), 6, "assets.0.tags.tier", "must be"),
    "a number for a version": (with_asset("code_version: 3"), 6, "code_version", "must be text"),
    "an empty task": ("  assets: [{key: a}]\n  task:\n", 5, "task", "it is empty"),
    "a condition without braces": (
        with_asset("automation_condition: eager"),
        6,
        "automation_condition",
        "must be a template",
    ),
    "a mapping for a freshness policy": (
        with_asset("freshness_policy: { days: 1 }"),
        6,
        "freshness_policy",
        "must be a template",
    ),
    "no asset": ("  assets: []\n  task: scripted\n", 4, "assets", "at least 1 item"),
    "no key": ("  assets:\n    - deps: [a]\n  task: scripted\n", 5, "assets.0.key", "required"),
    "no task": ("  assets:\n    - key: thing\n", 3, "task", "required"),
    "nothing": ("", 3, "attributes", "must be a mapping with assets and task; it is empty."),
    "text for assets": ("  assets: thing\n  task: scripted\n", 4, "assets", "must be a list"),
    "text for deps": (with_asset("deps: people"), 6, "deps", "must be a list; it is 'people'"),
    "text for kinds": (with_asset("kinds: polars"), 6, "kinds", "must be a list; it is 'polars'"),
    "text for owners": (with_asset("owners: me@a.com"), 6, "owners", "must be a list"),
    "text for checks": (f"{ONE}  checks: all\n", 7, "checks", "must be a list; it is 'all'"),
    "text for tags": (f"{ONE}  run_tags: team\n", 7, "run_tags", "must be a list of names"),
    "a task among the inputs": (f"{ONE}  event: {{task: it}}\n", 7, "task", "Set `task` under"),
    "text for an event": (f"{ONE}  event: rows\n", 7, "event", "input names to values"),
    "an owner that is none": (with_asset("owners: [me]"), 4, "assets", "Invalid owner 'me'"),
    "a group that is none": (with_asset("group_name: a b"), 4, "assets", '"a b" is not a valid'),
    "unknown partitions": (
        with_partitions(f"type: dayly, {START}, hour_offset: 2"),
        6,
        "partitions_def.type",
        "must be 'hourly', 'daily', 'weekly', 'time_window' or 'static'; it is 'dayly'. "
        "Did you mean daily?",
    ),
    "partitions of no known kind": (
        with_partitions(f"type: lunar, {START}"),
        6,
        "partitions_def.type",
        "must be 'hourly', 'daily', 'weekly', 'time_window' or 'static'; it is 'lunar'.",
    ),
    "a date that is none": (
        with_partitions("type: daily, start_date: '2024-13-01'"),
        6,
        "partitions_def",
        "'2024-13-01' does not match",
    ),
    "unknown condition": (
        with_asset("automation_condition: '{{ dg.AutomationCondition.sometimes() }}'"),
        6,
        "automation_condition",
        "could not be resolved",
    ),
    "unknown name in a template": (f"{ONE}  timeout: '{{{{ soon }}}}'\n", 7, "timeout", "soon"),
    "asset twice": ("  assets: [{key: a}, {key: a}]\n  task: b\n", 4, "assets", "only once"),
    "two kinds of partitions": (
        PARTITIONED.replace("  task", "    - key: other\n  task"),
        4,
        "assets",
        "the same `partitions_def`",
    ),
    "task that is none": (ONE.replace("scripted", "../it"), 6, "task", "'../it'"),
    "function that is none": (f"{ONE}  function: http://a\n", 7, "function", "an https URL, or"),
    "timeout that is none": (f"{ONE}  timeout: soon\n", 7, "timeout", "it is 'soon'"),
    "timeout too long": (f"{ONE}  timeout: 3601\n", 7, "timeout", "up to 3600; it is 3601"),
    "timeout too long, by a template": (
        f"{ONE}  timeout: '{{{{ 60 * 61 }}}}'\n",
        7,
        "timeout",
        "up to 3600; it is 3660",
    ),
    "negative time": (f"{ONE}  retry_timeout: -1\n", 7, "retry_timeout", "0 or more; it is -1"),
    "none in flight": (f"{ONE}  max_in_flight: 0\n", 7, "max_in_flight", "from 1 to 1000"),
    "pool that is none": (f"{ONE}  pool: a b\n", 7, "pool", "without spaces; it is 'a b'"),
    "check of another asset": (
        f"{ONE}  checks:\n    - {{ name: fine, asset: other }}\n",
        8,
        "checks.0.asset",
        "other is not one of the assets here: thing.",
    ),
    "check that is no name": (
        f"{ONE}  checks:\n    - name: so so\n      asset: thing\n",
        8,
        "checks.0.name",
        "digits and underscores; it is 'so so'",
    ),
    "check twice": (
        f"{ONE}  checks:\n    - &fine {{ name: fine, asset: thing }}\n    - *fine\n",
        7,
        "checks",
        "only once",
    ),
    "unknown part of a document": (
        f"{ONE}post_processing:\n  asset:\n    - attributes: {{ tags: {{ a: b }} }}\n",
        8,
        "post_processing.asset",
        "Did you mean assets?",
    ),
    "misspelled field of a change": (
        f"{ONE}post_processing:\n  assets:\n    - attributes: {{ tag: {{ a: b }} }}\n",
        9,
        "post_processing.assets.0.attributes.tag",
        "Did you mean tags?",
    ),
    "unknown way to change": (
        f"{ONE}post_processing:\n  assets:\n    - {{ operation: mrge, attributes: {{}} }}\n",
        9,
        "post_processing.assets.0.operation",
        "must be 'merge' or 'replace'; it is 'mrge'. Did you mean merge?",
    ),
}


@pytest.mark.parametrize(
    ("attributes", "line", "field", "problem"), list(WRONG.values()), ids=list(WRONG)
)
def test_an_error_is_reported_with_its_line_and_field(
    attributes: str, line: int, field: str, problem: str
) -> None:
    [error] = errors_of(attributes)

    assert re.search(rf"^\S+/thing/defs\.yaml:{line}: \S*{re.escape(field)} ", error), error
    assert problem in error


def errors_of(
    attributes: str, component: type[CloudFunctionAsset] = CloudFunctionAsset
) -> list[str]:
    """The errors in a `defs.yaml` with these attributes."""
    with pytest.raises(Exception, match="thing") as error, loaded(attributes, component):
        pass
    assert isinstance(error.value.__cause__, DefsYamlError)
    return str(error.value.__cause__).splitlines()


def test_each_error_in_a_file_is_reported_once() -> None:
    errors = errors_of("""\
  assets:
    - key: thing
      partition_def: { type: dayly, start_date: "2024-01-01" }
      kinds: polars
    - dep: [thing]
  task: "{{ soon }}"
  event: { task: other }
  timeout: "{{ 60 * 61 }}"
  checks:
    - { name: fine, asset: thing, blockin: maybe }
""")

    found = {
        re.sub(r".*defs\.yaml:", "", error.split(" ")[0]) + error.split(" ")[1] for error in errors
    }
    assert sorted(found) == sorted(
        [
            "6:attributes.assets.0.partition_def",
            "6:attributes.assets.0.partition_def.type",
            "7:attributes.assets.0.kinds",
            "8:attributes.assets.1.key",
            "8:attributes.assets.1.dep",
            "9:attributes.task",
            "10:attributes.event.task",
            "11:attributes.timeout",
            "13:attributes.checks.0.blockin",
        ]
    )
    assert len(errors) == len(found)


def test_a_misspelled_field_does_not_get_its_default() -> None:
    with create_defs_folder_sandbox() as sandbox:
        (sandbox.project_root / "cloud_function" / "tasks").mkdir(parents=True)
        write(sandbox, f"{ONE}  functon: reports\n", CloudFunctionAsset)
        load = moved(sandbox, sandbox.project_root / "orchestrator")

        with pytest.raises(Exception, match="thing") as error:
            load()

    assert isinstance(error.value.__cause__, DefsYamlError)
    [problem] = error.value.__cause__.errors  # and none about the missing task
    assert problem.endswith("attributes.functon is not a field. Did you mean function?")


def test_the_errors_in_all_files_and_documents_are_reported_in_one_run() -> None:
    kind = "gcp_pipes.components.CloudFunctionAsset"
    document = f"type: {kind}\nattributes:\n{ONE}"
    with create_defs_folder_sandbox() as sandbox:
        for name, content in {
            "fine": document,
            "one": document + "  colour: red\n",
            "other": "---\n".join(
                [document, f"{document}  event: {{ task: it }}\n", f"{document}  pool: 3\n"]
            ),
            "their": "type: dagster.DefinitionsComponent\nattributes: { pat: a.py }\n",
        }.items():
            write_files(sandbox.defs_folder_path, {name: content})
        with pytest.raises(Exception, match="loading") as error, sandbox.build_all_defs():
            pass

    places = re.findall(r"/(\w+/defs\.yaml:\d+: \S+) ", str(error.value.__cause__))
    assert places == [
        "one/defs.yaml:6: attributes.colour",
        "other/defs.yaml:12: attributes.event.task",
        "other/defs.yaml:19: attributes.pool",
        "their/defs.yaml:2: attributes.pat",
    ]


class Size(Enum):
    """An enum of an owner."""

    SMALL = "small"
    LARGE = "large"


@dataclass
class Reader(dg.Resolvable):
    """A part of an owner's component, as a dataclass."""

    name: str
    languages: list[str] | str
    age: int | None = None


class Page(dg.Model):
    """The same, as a Pydantic model."""

    lines: int = 1


class Report(CloudFunctionAsset):
    """An owner's own component, with fields of its own."""

    title: str
    size: Size = Size.SMALL
    width: int | Literal["full"] = "full"
    copies: Annotated[int, Field(ge=1)] = 1
    readers: Annotated[list[Reader], Field(default_factory=list)]
    pages: Annotated[dict[str, Page], Field(default_factory=dict)]
    weights: Annotated[dict[str, float], Field(default_factory=dict)]
    marks: list[int] | list[str] | dict[str, int] | None = None
    kind: Literal["daily", "monthly"] = "daily"
    names: list[str] | str = "all"
    source: Annotated[Path | None, dg.Resolver.default(model_field_type=str)] = None
    is_public: bool = Field(default=False, alias="public")


REPORT = f"{ONE}  title: Thing\n"


def test_a_component_can_have_fields_of_its_own() -> None:
    attributes = f"""{REPORT}\
  size: large
  width: full
  readers:
    - {{ name: one, languages: nl }}
    - {{ name: "{{{{ 'other' }}}}", languages: [nl, en], age: "{{{{ 6 * 7 }}}}" }}
  pages: {{ first: {{ lines: 3 }}, second: {{}} }}
  weights: {{ a: 1, b: 2.5 }}
  marks: [a, b]
  kind: monthly
  names: some
  source: a/file
  public: true
"""
    with loaded(attributes, Report) as (component, _):
        assert component.readers == [Reader("one", "nl"), Reader("other", ["nl", "en"], 42)]
        assert component.marks == ["a", "b"]
        assert component.pages == {"first": Page(lines=3), "second": Page()}
        assert (component.size, component.width) == (Size.LARGE, "full")
        assert (component.kind, component.names) == ("monthly", "some")
        assert (component.source, component.is_public) == (Path("a/file"), True)


@pytest.mark.parametrize(
    ("line", "field", "problem"),
    [
        ("titel: Other", "titel", "The fields are: assets, task"),
        ("size: huge", "size", "must be 'small' or 'large'; it is 'huge'."),
        ("size: Larg", "size", "Did you mean large?"),
        ("width: wide", "width", "must be a whole number or 'full'; it is 'wide'."),
        ("readers: [{ name: a, language: nl }]", "readers.0.language", "mean languages?"),
        ("readers: [{ name: a, languages: nl, age: old }]", "readers.0.age", "a whole number"),
        ("readers: [{ languages: nl }]", "readers.0.name", "is required"),
        ("readers: a", "readers", "must be a list; it is 'a'."),
        ("pages: { first: { line: 3 } }", "pages.first.line", "Did you mean lines?"),
        ("pages: { first: { lines: few } }", "pages.first.lines", "must be a whole number"),
        ("copies: 0", "copies", "must be greater than or equal to 1; it is 0."),
        ("weights: { a: heavy }", "weights.a", "must be a number; it is 'heavy'."),
        ("marks: [{}]", "marks.0", "must be a whole number or text; it is {}."),
        ("marks: { a: b }", "marks.a", "must be a whole number; it is 'b'."),
        ("kind: dayly", "kind", "must be 'daily' or 'monthly'; it is 'dayly'. Did you mean daily?"),
        ("kind: '{{ 7 }}'", "kind", "is invalid: Input should be 'daily' or 'monthly'."),
        ("names: 3", "names", "must be a list or text; it is 3."),
        ("publik: true", "publik", "Did you mean public?"),
        ("public: maybe", "public", "must be true or false; it is 'maybe'."),
    ],
)
def test_an_error_in_a_field_of_an_owners_component_is_reported(
    line: str, field: str, problem: str
) -> None:
    [error] = errors_of(f"{REPORT}  {line}\n", Report)

    assert f"thing/defs.yaml:8: attributes.{field} " in error
    assert problem in error


@pytest.mark.parametrize(
    "line",
    [
        "checks: '{{ [] }}'",
        "event: '{{ dict(rows=10) }}'",
        "run_tags: '{{ [\"team\"] }}'",
        "max_in_flight: '{{ 5 * 5 }}'",
        "function: null",
        "timeout: '540'",
    ],
)
def test_fields_accept_templates_and_values_that_can_be_converted(line: str) -> None:
    with loaded(f"{ONE}  {line}\n") as (_, definitions):
        assert assets(definitions)


def test_the_fields_of_an_asset_accept_templates() -> None:
    attributes = """\
  assets:
    - key: "{{ 'thing' }}"
      deps: "{{ ['a', 'b'] }}"
      kinds: ["{{ 'polars' }}"]
      skippable: "{{ 1 > 2 }}"
      partitions_def: "{{ dg.DailyPartitionsDefinition('2024-01-01') }}"
  task: "{{ 'scripted' }}"
"""
    with loaded(attributes) as (_, definitions):
        [spec] = assets(definitions)[0].specs

    assert spec.key == dg.AssetKey("thing")
    assert spec.kinds == {"polars"}
    assert spec.partitions_def == dg.DailyPartitionsDefinition("2024-01-01")


def test_attributes_that_are_not_from_a_file_are_checked_too() -> None:
    component = CloudFunctionAsset.from_attributes_dict(
        attributes={"assets": [{"key": "thing"}], "task": "scripted"}
    )
    assert component.task == "scripted"

    with pytest.raises(DefsYamlError) as error:
        CloudFunctionAsset.from_attributes_dict(attributes={"assets": [{"kex": "thing"}]})
    assert error.value.errors == (
        "attributes.assets.0.kex is not a field. Did you mean key?",
        "attributes.task is required, but missing. Add it.",
    )


TYPE = "type: gcp_pipes.components.CloudFunctionAsset\n"
UNLOADABLE = {
    "misspelled attributes": (
        f"{TYPE}attribute:\n{ONE}",
        "2: attribute is not a field. Did you mean attributes?",
    ),
    "misspelled type": (
        f"tpye: {TYPE[6:]}attributes:\n{ONE}",
        "1: tpye is not a field. Did you mean type?",
    ),
    "no type": (f"\nattributes:\n{ONE}", "2: type is required, but missing. Add it."),
    "misspelled component": (
        f"type: gcp_pipes.components.CloudFunctionAset\nattributes:\n{ONE}",
        "1: type must be a component; it is 'gcp_pipes.components.CloudFunctionAset'. "
        "Did you mean gcp_pipes.components.CloudFunctionAsset?",
    ),
    "component without its module": (
        f"type: CloudFunctionAsset\nattributes:\n{ONE}",
        "1: type must be a component; it is 'CloudFunctionAsset'. "
        "Did you mean gcp_pipes.components.CloudFunctionAsset?",
    ),
    "component of another module": (
        f"type: my_data_platform.component.CloudFunctionAsset\nattributes:\n{ONE}",
        "1: type must be a component; it is 'my_data_platform.component.CloudFunctionAsset'. "
        "Did you mean gcp_pipes.components.CloudFunctionAsset?",
    ),
    "no component": (
        f"type: my_data_platform.settings.Settings\nattributes:\n{ONE}",
        "1: type must be a component; it is 'my_data_platform.settings.Settings'. "
        "The components are: gcp_pipes.components.CloudFunctionAsset, "
        "gcp_pipes.components.CloudRunJobAsset.",
    ),
    "misspelled requirement": (
        f"{TYPE}attributes:\n{ONE}requirements: {{ envs: [A] }}\n",
        "6: requirements.envs is not a field. Did you mean env?",
    ),
    "text for attributes": (
        f"{TYPE}attributes: thing\n",
        "2: attributes must be a mapping with assets and task; it is 'thing'.",
    ),
    "no attributes": (f"{TYPE}", "1: attributes is required, but missing. Add it."),
    "an empty document": (
        f"{TYPE}attributes:\n{ONE}---\n",
        "7: The document must be a mapping with type; it is empty.",
    ),
    "an empty file": ("# Later.\n", "1: The file has no component. Add one, or delete the file."),
    "a list": ("- a\n", "1: The document must be a mapping with type; it is ['a']."),
    "not indented": (
        f"{TYPE}attributes:\n{ONE} pool: a\n",
        "6: The document could not be parsed: expected <block end>, but found '<block mapping "
        "start>'.",
    ),
    "a template without quotes": (
        f"{TYPE}attributes:\n{ONE}  timeout: {{{{ 60 * 9 }}}}\n",
        "6: The document could not be parsed. Put quotes around templates.",
    ),
    "of a component of Dagster": (
        "type: dagster.DefinitionsComponent\nattributes: { pat: a.py }\n",
        "2: attributes.pat is not a field. Did you mean path?",
    ),
}


@pytest.mark.parametrize(("content", "error"), list(UNLOADABLE.values()), ids=list(UNLOADABLE))
def test_an_error_that_keeps_dagster_from_loading_is_reported_before_loading(
    content: str, error: str, tmp_path: Path
) -> None:
    write_files(tmp_path, {"thing": content})

    with pytest.raises(DefsYamlError) as raised:
        check_files(tmp_path, "any")

    assert raised.value.errors == (f"{tmp_path}/thing/defs.yaml:{error}",)


def test_the_errors_in_all_files_are_reported_before_loading(tmp_path: Path) -> None:
    fine = f"{TYPE}attributes:\n{ONE}"
    write_files(
        tmp_path,
        {
            "a": f"{TYPE}attribute:\n{ONE}  colour: red\n---\n{fine}  poool: a\n",
            "b/c": f"{fine}---\ntype: 3\n",
            "d": fine,
        },
    )

    with pytest.raises(DefsYamlError) as raised:
        check_files(tmp_path, "any")

    places = [error.split(" ")[:2] for error in raised.value.errors]
    assert places == [
        [f"{tmp_path}/a/defs.yaml:2:", "attribute"],
        [f"{tmp_path}/a/defs.yaml:6:", "attribute.colour"],
        [f"{tmp_path}/a/defs.yaml:13:", "attributes.poool"],
        [f"{tmp_path}/b/c/defs.yaml:7:", "type"],
    ]


def test_an_error_that_loading_reports_is_reported_once(tmp_path: Path) -> None:
    write_files(tmp_path, {"thing": f"{TYPE}attributes:\n{ONE}  colour: red\n"})

    check_files(tmp_path, "any")


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "defs.yaml").write_text(content)


def test_the_error_for_an_unknown_task_lists_the_tasks_of_the_function() -> None:
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
    assert re.search(r"defs\.yaml:6: attributes\.task ", text)
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
    """Move the sandbox's project into the folder `project`; return a function that loads it."""
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


def test_an_asset_of_the_component_can_have_a_hook_and_be_called_directly(
    resources: Resources, instance: dg.DagsterInstance
) -> None:
    succeeded: list[str] = []

    @dg.success_hook
    def record(context: dg.HookContext) -> None:
        succeeded.append(context.step_key)

    with loaded(ONE) as (_, definitions):
        job = dg.define_asset_job("job", [dg.AssetKey("thing")], hooks={record})
        with_job = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
        bound = dg.Definitions.merge(with_job, dg.Definitions(resources=resources))
        run = bound.resolve_job_def("job").execute_in_process(instance=instance)
        [asset] = assets(definitions)
        directly: Any = asset
        [result] = list(directly(context=dg.build_asset_context(resources=dict(resources))))

    assert run.success
    assert succeeded == ["thing"]
    assert result.asset_key == dg.AssetKey("thing")
