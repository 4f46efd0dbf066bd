"""Every kind of asset, check and op calls the function by `run`, with the rules kept."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg
import pytest
from faults import FaultProxy, respond
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudFunctionError
from gcp_pipes.orchestrator.context import Context
from gcp_pipes.orchestrator.results import CompletedCall

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-03-01")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
EVENTS = {"ASSET_MATERIALIZATION", "ASSET_OBSERVATION", "ASSET_CHECK_EVALUATION"}

Call = Callable[..., CompletedCall]


@pytest.fixture
def call(client: PipesCloudFunctionClient, calls: FaultProxy) -> Call:
    """Calls the task `scripted`, which reports nothing by itself, with inputs by name."""

    def call(context: Context, **event: Any) -> CompletedCall:
        return client.run(
            context=context,
            function_url=calls.url,
            event={"task": "scripted", "report": False, **event},
        )

    return call


class Instance:
    """Runs definitions, and knows what they left in the event log."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.events: list[tuple[str, str]] = []
        """The kind of each event that says something of an asset, and the asset or check."""
        self.failure = ""
        self.checks: Sequence[dg.AssetCheckEvaluation] = []

    def run(
        self,
        *definitions: Any,
        selection: Any = None,
        partition_key: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> bool:
        """Execute all of the definitions, or what is selected, in one run."""
        checks = [each for each in definitions if isinstance(each, dg.AssetChecksDefinition)]
        everything = dg.AssetSelection.all(include_sources=True)
        job = dg.define_asset_job(
            "job", selection or everything | dg.AssetSelection.all_asset_checks()
        )
        result = (
            dg.Definitions(
                assets=[each for each in definitions if each not in checks],
                asset_checks=checks,
                jobs=[job],
            )
            .resolve_job_def("job")
            .execute_in_process(
                instance=self.instance,
                raise_on_error=False,
                run_config=QUIET,
                partition_key=partition_key,
                tags=tags,
            )
        )
        self.note(result)
        return result.success

    def note(self, result: dg.ExecuteInProcessResult) -> None:
        """Keep what a run has left."""
        self.checks = result.get_asset_check_evaluations()
        self.events = []
        for event in result.all_events:
            data: Any = event.event_specific_data
            if event.event_type_value in EVENTS:
                key: Any = event.asset_key
                if "CHECK" in event.event_type_value:
                    key = data.asset_check_key
                self.events.append((event.event_type_value, key.to_user_string()))
            elif event.event_type_value == "STEP_FAILURE":
                self.failure = str(data.error.cause.message if data.error.cause else data.error)

    def observations(self, key: str) -> Sequence[dg.AssetObservation]:
        records = self.instance.fetch_observations(dg.AssetKey(key), limit=100).records
        found = [record.event_log_entry.asset_observation for record in records]
        return [each for each in found if each is not None]


@pytest.fixture
def instance() -> Iterator[Instance]:
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        yield Instance(instance)


def observes(*names: str, **options: Any) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`dg.multi_observable_source_asset`, which has no type of its own."""
    partitions_def = options.pop("partitions_def", None)
    specs = [dg.AssetSpec(name, partitions_def=partitions_def) for name in names]
    decorator: Callable[[Callable[..., Any]], dg.AssetsDefinition] = (
        dg.multi_observable_source_asset(specs=specs, **options)
    )
    return decorator


def is_full(asset: str = "one", name: str = "full", *, passed: bool = True) -> dict[str, Any]:
    """The report of a check."""
    return {"check_name": name, "asset_key": asset, "passed": passed}


@dg.asset
def one() -> None:
    """An asset that is checked."""


# Subsets


def subset(call: Call, **event: Any) -> list[dg.AssetsDefinition]:
    """Multi-assets of which some can be selected, in each of the ways to define one."""

    @dg.multi_asset(
        specs=[dg.AssetSpec("a"), dg.AssetSpec("b", skippable=True), dg.AssetSpec("c")],
        check_specs=[dg.AssetCheckSpec("full", asset=name) for name in ("a", "b")],
        can_subset=True,
    )
    def by_specs(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from call(context, **event).get_results()

    @dg.multi_asset(
        outs={name: dg.AssetOut(is_required=False, dagster_type=dg.Nothing) for name in "abc"},
        check_specs=[dg.AssetCheckSpec("full", asset=name) for name in ("a", "b")],
        can_subset=True,
    )
    def by_outs(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from call(context, **event).get_results()

    return [by_specs, by_outs]


@pytest.mark.parametrize("definition", [0, 1], ids=["specs", "outs"])
def test_a_selected_asset_of_a_subset_that_is_not_reported_fails_the_step(
    definition: int, call: Call, instance: Instance
) -> None:
    asset = subset(call, assets=["a"], checks=[is_full("a"), is_full("b")])[definition]

    assert not instance.run(asset, selection=dg.AssetSelection.assets("a", "b"))

    assert "did not report b as materialized" in instance.failure
    assert ("ASSET_MATERIALIZATION", "b") not in instance.events


@pytest.mark.parametrize("definition", [0, 1], ids=["specs", "outs"])
def test_an_asset_that_is_not_selected_need_not_be_reported(
    definition: int, call: Call, instance: Instance
) -> None:
    asset = subset(call, assets=["a"], checks=[is_full("a")])[definition]

    assert instance.run(asset, selection=dg.AssetSelection.assets("a")), instance.failure

    assert sorted(instance.events) == [
        ("ASSET_CHECK_EVALUATION", "a:full"),
        ("ASSET_MATERIALIZATION", "a"),
    ]


@pytest.mark.parametrize("definition", [0, 1], ids=["specs", "outs"])
def test_a_selected_check_of_a_subset_that_is_not_reported_fails_the_step(
    definition: int, call: Call, instance: Instance
) -> None:
    asset = subset(call, assets=["a"])[definition]

    assert not instance.run(asset, selection=dg.AssetSelection.assets("a"))
    assert "did not report the check a:full" in instance.failure

    only_check = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("b"), "full"))
    assert not instance.run(asset, selection=only_check)
    assert "did not report the check b:full" in instance.failure


def test_a_check_of_a_subset_can_run_alone(call: Call, instance: Instance) -> None:
    only_check = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("b"), "full"))

    for asset in subset(call, checks=[is_full("b")]):
        assert instance.run(asset, selection=only_check), instance.failure

        assert instance.events == [("ASSET_CHECK_EVALUATION", "b:full")]


def test_results_of_a_subset_that_are_not_yielded_fail_the_step(
    call: Call, instance: Instance
) -> None:
    @dg.multi_asset(specs=[dg.AssetSpec("a"), dg.AssetSpec("b")], can_subset=True)
    def dropping(context: dg.AssetExecutionContext) -> Iterator[Any]:
        call(context, assets=["a"])
        yield from ()

    assert not instance.run(dropping, selection=dg.AssetSelection.assets("a"))

    assert "were not returned" in instance.failure


def test_each_partition_needs_the_selected_assets(
    client: PipesCloudFunctionClient, calls: FaultProxy, instance: Instance
) -> None:
    reported = ["a"]

    @dg.multi_asset(
        specs=[dg.AssetSpec(name, partitions_def=DAYS) for name in "abc"],
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def asset(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context,
            function_url=calls.url,
            event={"task": "scripted", "assets": reported},
        )

    days = {
        "dagster/asset_partition_range_start": "2024-01-01",
        "dagster/asset_partition_range_end": "2024-01-02",
    }
    both = dg.AssetSelection.assets("a", "b")

    assert not instance.run(asset, selection=both, tags=days)
    assert instance.failure.count("did not report b as materialized") == 2
    assert not instance.run(asset, selection=both, partition_key="2024-01-01")
    assert "did not report b as materialized" in instance.failure

    reported.append("b")
    assert instance.run(asset, selection=both, tags=days), instance.failure
    assert sorted(instance.events) == [("ASSET_MATERIALIZATION", name) for name in "aabb"]


def test_a_skippable_asset_that_is_left_out_is_not_materialized(
    call: Call, instance: Instance
) -> None:
    @dg.multi_asset(specs=[dg.AssetSpec("a"), dg.AssetSpec("b", skippable=True)])
    def asset(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from call(context, assets=["a"]).get_results()

    assert instance.run(asset), instance.failure

    assert instance.events == [("ASSET_MATERIALIZATION", "a")]


# Observable assets


def test_an_observable_asset_is_observed_by_the_function(call: Call, instance: Instance) -> None:
    @dg.observable_source_asset
    def source(context: dg.OpExecutionContext) -> dg.DataVersion:
        [version] = call(context, custom_messages=["7"]).get_custom_messages()
        return dg.DataVersion(version)

    assert instance.run(source), instance.failure

    [observation] = instance.observations("source")
    assert observation.data_version == "7"


def test_a_multi_observable_asset_yields_what_the_function_observed(
    call: Call, instance: Instance
) -> None:
    @observes("a", "b", check_specs=[dg.AssetCheckSpec("full", asset="a")])
    def sources(context: dg.AssetExecutionContext) -> Iterator[Any]:
        done = call(context, observed=["a", "b", "elsewhere"], checks=[is_full("a")])
        yield from done.get_results()

    assert instance.run(sources), instance.failure

    for key in ("a", "b", "elsewhere"):
        [observation] = instance.observations(key)
        assert observation.data_version == "7"
        assert observation.metadata["seen"].value == 1
    assert ("ASSET_CHECK_EVALUATION", "a:full") in instance.events
    assert len(instance.events) == 4


def test_a_multi_observable_asset_can_make_its_own_observations(
    call: Call, instance: Instance
) -> None:
    @observes("a", "b")
    def sources(context: dg.AssetExecutionContext) -> Iterator[dg.ObserveResult]:
        done = call(context, custom_messages=["7", "8"])
        for key, version in zip("ab", done.get_custom_messages(), strict=True):
            yield dg.ObserveResult(asset_key=key, data_version=dg.DataVersion(version))

    assert instance.run(sources), instance.failure

    assert [each.data_version for key in "ab" for each in instance.observations(key)] == ["7", "8"]


def test_a_materialization_of_an_observable_asset_is_an_observation(
    call: Call, instance: Instance
) -> None:
    @observes("a")
    def sources(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from call(context, report=True, data_version="9").get_results()

    assert instance.run(sources), instance.failure

    assert instance.events == [("ASSET_OBSERVATION", "a")]
    assert instance.observations("a")[0].data_version == "9"


@pytest.mark.parametrize("can_subset", [False, True])
def test_an_observation_that_is_not_reported_fails_the_step(
    can_subset: bool, call: Call, instance: Instance
) -> None:
    @observes("a", "b", can_subset=can_subset)
    def sources(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from call(context, observed=["a"]).get_results()

    assert not instance.run(sources)

    assert "did not report b as observed. Call `report_asset_observation`" in instance.failure
    assert "materialize" not in instance.failure


def test_an_observation_that_is_not_yielded_fails_the_step(call: Call, instance: Instance) -> None:
    @observes("a", can_subset=True)
    def sources(context: dg.AssetExecutionContext) -> Iterator[Any]:
        call(context, observed=["a"])
        yield from ()

    assert not instance.run(sources)

    assert "or observes, with `yield from client.run(...).get_results()`" in instance.failure


def test_an_observable_asset_whose_function_fails_is_not_observed(
    call: Call, instance: Instance
) -> None:
    @dg.observable_source_asset
    def source(context: dg.OpExecutionContext) -> dg.DataVersion:
        call(context, error="nothing there")
        return dg.DataVersion("7")

    assert not instance.run(source)

    assert "ValueError: nothing there" in instance.failure
    assert not instance.observations("source")


@pytest.mark.parametrize("each_partition", [False, True])
def test_the_partitions_of_an_observable_asset_are_observed(
    each_partition: bool,
    client: PipesCloudFunctionClient,
    calls: FaultProxy,
    instance: Instance,
) -> None:
    observed = ["a"]

    @observes("a", "b", partitions_def=DAYS)
    def sources(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context,
            function_url=calls.url,
            event={"task": "scripted", "report": False, "observed": observed},
        )

    days = ["2024-01-01", "2024-01-02"] if each_partition else ["2024-01-01"]
    run: dict[str, Any] = {"partition_key": days[0]}
    if each_partition:
        ends = zip(("start", "end"), days, strict=True)
        run = {"tags": {f"dagster/asset_partition_range_{end}": day for end, day in ends}}

    assert not instance.run(sources, **run)
    assert "did not report b as observed" in instance.failure
    before = len(instance.observations("a"))

    observed.append("b")
    assert instance.run(sources, **run), instance.failure
    assert sorted(str(each.partition) for each in instance.observations("b")) == days
    assert len(instance.observations("a")) == before + len(days)
    assert {kind for kind, _ in instance.events} == {"ASSET_OBSERVATION"}


# Graph-backed assets


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("value", [None, 5])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_op_that_prepares_a_graph_backed_asset_needs_no_report(
    wrapped: bool, value: Any, reports: bool, call: Call, instance: Instance
) -> None:
    @dg.op(out=dg.Out(dg.Any))
    def prepare_plainly(context: dg.OpExecutionContext) -> Any:
        call(context, lines=1, report=reports)
        return value

    @dg.op(out=dg.Out(dg.Any))
    def prepare_output(context: dg.AssetExecutionContext) -> dg.Output[Any]:
        call(context, lines=1, report=reports)
        return dg.Output(value)

    @dg.op
    def make(context: dg.AssetExecutionContext, prepared: Any) -> Any:
        assert prepared == value
        return call(context, report=True, metadata={"size": 3}).get_materialize_result()

    @dg.graph_asset
    def thing() -> Any:
        return make(prepare_output() if wrapped else prepare_plainly())

    assert instance.run(thing), instance.failure

    assert instance.events == [("ASSET_MATERIALIZATION", "thing")]


def test_the_op_that_makes_a_graph_backed_asset_must_report_it(
    call: Call, instance: Instance
) -> None:
    @dg.op
    def prepare(context: dg.OpExecutionContext) -> None:
        call(context)

    @dg.op(ins={"prepared": dg.In(dg.Nothing)})
    def make(context: dg.OpExecutionContext) -> Any:
        return call(context).get_materialize_result()

    @dg.graph_asset
    def thing() -> Any:
        return make(prepare())

    assert not instance.run(thing)

    assert "did not report thing as materialized" in instance.failure


def test_the_op_that_makes_a_graph_backed_asset_must_yield_it(
    call: Call, instance: Instance
) -> None:
    @dg.op
    def make(context: dg.OpExecutionContext) -> None:
        call(context, report=True)

    @dg.graph_asset
    def thing() -> Any:
        return make()

    assert not instance.run(thing)

    assert "were not returned" in instance.failure


def test_an_op_that_prepares_an_asset_fails_if_its_function_fails(
    call: Call, instance: Instance
) -> None:
    @dg.op
    def prepare(context: dg.OpExecutionContext) -> dg.Output[None]:
        call(context, error="no luck")
        return dg.Output(None)

    @dg.op
    def make(prepared: Any) -> int:
        return 1

    @dg.graph_asset
    def thing() -> Any:
        return make(prepare())

    assert not instance.run(thing)

    assert "ValueError: no luck" in instance.failure


def test_each_op_of_a_graph_must_report_its_own_assets_and_checks(
    call: Call, instance: Instance
) -> None:
    reported = ["b"]

    @dg.op
    def prepare(context: dg.OpExecutionContext) -> int:
        call(context)
        return 5

    @dg.op(out={"a": dg.Out(dg.Nothing)})
    def make_a(context: dg.OpExecutionContext, prepared: int) -> Iterator[Any]:
        yield from call(context, assets=["a"]).get_results()

    @dg.op(out={"b": dg.Out(dg.Nothing)})
    def make_b(context: dg.AssetExecutionContext, prepared: int) -> Iterator[Any]:
        yield from call(context, assets=reported).get_results()

    @dg.op(out={"a_full": dg.Out(dg.Nothing)}, ins={"made": dg.In(dg.Nothing)})
    def check(context: dg.OpExecutionContext) -> Iterator[Any]:
        yield from call(context, checks=[is_full("a")]).get_results()

    @dg.graph_multi_asset(
        outs={"a": dg.AssetOut(), "b": dg.AssetOut()},
        check_specs=[dg.AssetCheckSpec("full", asset="a")],
    )
    def things() -> Any:
        prepared = prepare()
        a = make_a(prepared)
        return {"a": a, "b": make_b(prepared), "a_full": check(a)}

    assert instance.run(things), instance.failure
    assert sorted(instance.events) == [
        ("ASSET_CHECK_EVALUATION", "a:full"),
        ("ASSET_MATERIALIZATION", "a"),
        ("ASSET_MATERIALIZATION", "b"),
    ]

    reported.clear()
    assert not instance.run(things)
    assert "did not report b as materialized" in instance.failure


def test_a_selected_asset_of_a_graph_that_is_not_reported_fails_the_step(
    call: Call, instance: Instance
) -> None:
    outs = {name: dg.Out(dg.Nothing, is_required=False) for name in ("x", "y")}

    @dg.op(out=outs)
    def make(context: dg.OpExecutionContext) -> Iterator[Any]:
        yield from call(context, assets=["x"]).get_results()

    @dg.graph(out={"x": dg.GraphOut(), "y": dg.GraphOut()})
    def things() -> Any:
        return make()

    asset = dg.AssetsDefinition.from_graph(things, can_subset=True)

    assert instance.run(asset, selection=dg.AssetSelection.assets("x")), instance.failure
    assert not instance.run(asset)
    assert "did not report y as materialized" in instance.failure


def test_the_partitions_of_a_graph_backed_asset_are_called_for(
    client: PipesCloudFunctionClient, call: Call, calls: FaultProxy, instance: Instance
) -> None:
    @dg.op(out=dg.Out(dg.Nothing))
    def prepare(context: dg.OpExecutionContext) -> dg.Output[None]:
        call(context)
        return dg.Output(None)

    @dg.op(ins={"prepared": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
    def make(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context, function_url=calls.url, event={"task": "scripted"}
        )

    @dg.graph_asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    def thing() -> Any:
        return make(prepare())

    days = {
        "dagster/asset_partition_range_start": "2024-01-01",
        "dagster/asset_partition_range_end": "2024-01-03",
    }
    assert instance.run(thing, tags=days), instance.failure
    assert instance.events == [("ASSET_MATERIALIZATION", "thing")] * 3
    assert len(calls.seen) == 1 + 3


# Checks of their own


@pytest.mark.parametrize("passed", [True, False])
def test_a_stand_alone_check_is_evaluated_by_the_function(
    passed: bool, call: Call, instance: Instance
) -> None:
    @dg.asset_check(asset=one)
    def full(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return call(context, checks=[is_full(passed=passed)]).get_asset_check_result()

    assert instance.run(one, full), instance.failure

    [evaluation] = instance.checks
    assert evaluation.passed == passed
    assert not [name for name in evaluation.metadata if name.startswith("cloud_function")]


def test_checks_that_share_a_step_are_evaluated_by_one_call(
    call: Call, calls: FaultProxy, instance: Instance
) -> None:
    @dg.multi_asset_check(
        specs=[dg.AssetCheckSpec(name, asset="one") for name in ("full", "fresh")]
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        yield from call(context, checks=[is_full(), is_full(name="fresh")]).get_results()

    assert instance.run(one, checks), instance.failure

    assert {each.check_name for each in instance.checks} == {"full", "fresh"}
    assert len(calls.seen) == 1


def test_a_stand_alone_check_can_be_evaluated_in_dagster(call: Call, instance: Instance) -> None:
    @dg.asset_check(asset=one)
    def full(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        [rows] = call(context, custom_messages=[0]).get_custom_messages()
        return dg.AssetCheckResult(passed=rows > 0, metadata={"rows": rows})

    assert instance.run(one, full), instance.failure

    [evaluation] = instance.checks
    assert not evaluation.passed


@pytest.mark.parametrize("can_subset", [False, True])
def test_a_stand_alone_check_that_is_not_reported_fails_the_step(
    can_subset: bool, call: Call, instance: Instance
) -> None:
    @dg.multi_asset_check(
        specs=[dg.AssetCheckSpec(name, asset="one") for name in ("full", "fresh")],
        can_subset=can_subset,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        yield from call(context, checks=[is_full()]).get_results()

    assert not instance.run(one, checks)

    assert "did not report the check one:fresh" in instance.failure


def test_a_stand_alone_check_that_is_not_returned_fails_the_step(
    call: Call, instance: Instance
) -> None:
    @dg.asset_check(asset=one)
    def full(context: dg.AssetCheckExecutionContext) -> Any:
        call(context, checks=[is_full()])

    assert not instance.run(one, full)

    assert "a check with `.get_asset_check_result()`" in instance.failure


def test_a_check_whose_function_fails_fails_the_step(call: Call, instance: Instance) -> None:
    @dg.asset_check(asset=one)
    def full(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return call(context, error="no table").get_asset_check_result()

    assert not instance.run(one, full)

    assert "ValueError: no table" in instance.failure


def test_a_stand_alone_check_receives_its_partition(
    client: PipesCloudFunctionClient, calls: FaultProxy, instance: Instance
) -> None:
    @dg.asset(partitions_def=DAYS)
    def parted() -> None:
        """An asset that has partitions."""

    @dg.asset_check(asset=parted, partitions_def=DAYS)
    def full(context: dg.AssetCheckExecutionContext) -> Any:
        results = client.run_partitions(
            context=context,
            function_url=calls.url,
            event=lambda key: {
                "task": "scripted",
                "report": False,
                "checks": [is_full("parted", passed=key == "2024-01-02")],
                "failing_partitions": ["2024-01-03"],
            },
        )
        yield from results

    assert instance.run(parted, full, partition_key="2024-01-02"), instance.failure
    assert instance.checks[0].passed
    assert not instance.run(parted, full, partition_key="2024-01-03")
    assert "2024-01-03 is out of luck" in instance.failure


# Without a run


def called(definition: Any, context: Any) -> Any:
    """What an asset, a check or an op does if it is called like a function."""
    return definition(context)


def test_an_asset_can_be_called_directly(call: Call) -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from call(context, report=True, metadata={"size": 3}, lines=1).get_results()

    [result] = list(called(thing, dg.build_asset_context()))

    assert result.asset_key == dg.AssetKey("thing")
    assert result.metadata["size"].value == 3
    assert "| status | 200 |" in result.metadata["cloud_function_call"].value


def test_an_asset_that_is_called_directly_has_its_resources(
    client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    @dg.asset
    def thing(
        context: dg.AssetExecutionContext, pipes_function_client: PipesCloudFunctionClient
    ) -> dg.MaterializeResult[None]:
        return pipes_function_client.run(
            context=context,
            function_url=calls.url,
            event={"task": "scripted"},
            extras={"a": 1},
            run_tags=["team", "absent"],
        ).get_materialize_result()

    context = dg.build_asset_context(
        resources={"pipes_function_client": client}, run_tags={"team": "x"}
    )

    assert called(thing, context).asset_key == dg.AssetKey("thing")


@pytest.mark.parametrize(
    "partitions_def", [DAYS, dg.StaticPartitionsDefinition(["2024-01-01", "2024-01-02"])]
)
def test_an_asset_that_is_called_directly_has_its_partition(
    partitions_def: dg.PartitionsDefinition, call: Call
) -> None:
    @dg.asset(partitions_def=partitions_def)
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        done = call(context, report=True, failing_partitions=["2024-01-02"])
        return done.get_materialize_result()

    assert called(thing, dg.build_asset_context(partition_key="2024-01-01"))
    with pytest.raises(PipesCloudFunctionError, match="2024-01-02 is out of luck"):
        called(thing, dg.build_asset_context(partition_key="2024-01-02"))


def test_an_asset_that_is_called_directly_can_have_many_partitions(
    client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    @dg.asset(partitions_def=DAYS, check_specs=[dg.AssetCheckSpec("no_doubt", asset="thing")])
    def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context,
            function_url=calls.url,
            event={"task": "scripted", "doubtful_partitions": [], "data_version": "7"},
        )

    days = dg.PartitionKeyRange("2024-01-01", "2024-01-03")
    results = list(called(thing, dg.build_asset_context(partition_key_range=days)))

    made = [each for each in results if isinstance(each, dg.AssetMaterialization)]
    assert sorted(str(each.partition) for each in made) == [f"2024-01-0{day}" for day in (1, 2, 3)]
    assert made[0].tags == {"dagster/data_version": "7"}
    [check] = [each for each in results if isinstance(each, dg.AssetCheckResult)]
    assert check.passed


def test_a_function_that_fails_raises_its_error_where_the_asset_is_called_directly(
    call: Call,
) -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return call(context, error="no more people").get_materialize_result()

    with pytest.raises(PipesCloudFunctionError, match="ValueError: no more people"):
        called(thing, dg.build_asset_context())


def test_lost_messages_raise_an_error_where_the_asset_is_called_directly(
    call: Call, reads: FaultProxy
) -> None:
    reads.fail_always(respond(403), when=lambda request: "2.json" in request.path)

    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return call(context, report=True).get_materialize_result()

    with pytest.raises(PipesCloudFunctionError, match=r"Could not read gs://\S+/2\.json"):
        called(thing, dg.build_asset_context())


def test_an_op_can_be_called_directly(call: Call) -> None:
    @dg.op
    def work(context: dg.OpExecutionContext) -> Any:
        return call(context, custom_messages=["done"]).get_custom_messages()

    assert work(dg.build_op_context()) == ("done",)
    assert work(dg.build_op_context(partition_key="2024-01-01")) == ("done",)


def test_a_check_can_be_called_directly(call: Call) -> None:
    @dg.asset_check(asset=one)
    def full(context: dg.AssetCheckExecutionContext) -> Any:
        return call(context, checks=[is_full()]).get_asset_check_result()

    assert called(full, dg.build_asset_check_context()).passed


def test_observations_can_be_made_directly(call: Call) -> None:
    @observes("a")
    def sources(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from call(context, observed=["a"]).get_results()

    [result] = list(called(sources, dg.build_asset_context()))

    assert isinstance(result, dg.ObserveResult)
    assert result.data_version == dg.DataVersion("7")


# Ops


def test_ops_of_a_plain_job_call_the_function(call: Call, calls: FaultProxy) -> None:
    heard: list[str] = []

    @dg.op(out=dg.DynamicOut(str))
    def split(context: dg.OpExecutionContext) -> Iterator[Any]:
        for name in call(context, custom_messages=["x", "y"]).get_custom_messages():
            yield dg.DynamicOutput(name, mapping_key=name)

    @dg.op
    def work(context: dg.OpExecutionContext, name: str) -> str:
        [said] = call(context, custom_messages=[name * 2]).get_custom_messages()
        return str(said)

    @dg.op
    def gather(names: list[str]) -> None:
        heard.extend(sorted(names))

    @dg.success_hook
    def tell(context: dg.HookContext) -> None:
        heard.append(context.op.name)

    @dg.job(hooks={tell}, partitions_def=DAYS)
    def job() -> None:
        gather(split().map(work).collect())

    assert job.execute_in_process(partition_key="2024-01-01", run_config=QUIET).success

    assert {"xx", "yy", "split", "work"} <= {*heard}
    assert len(calls.seen) == 3


def test_a_failure_hook_receives_what_the_function_reported(call: Call) -> None:
    heard: list[BaseException | None] = []

    @dg.failure_hook
    def tell(context: dg.HookContext) -> None:
        heard.append(context.op_exception)

    @dg.asset(hooks={tell})
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return call(context, error="no luck").get_materialize_result()

    assert not dg.materialize([thing], raise_on_error=False, run_config=QUIET).success

    [error] = heard
    assert isinstance(error, PipesCloudFunctionError)
    assert "no luck" in str(error)
