"""What the function is told of the run that it works for, in every kind of run."""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from faults import FaultProxy
from gcp_pipes.orchestrator import PipesCloudFunctionClient

DAYS = dg.DailyPartitionsDefinition("2024-01-01", timezone="Europe/Amsterdam")
CITIES = dg.StaticPartitionsDefinition(["ams", "ber", "cph"])
DAYS_AND_CITIES = dg.MultiPartitionsDefinition({"city": CITIES, "day": DAYS})

FIRST = {"start": "2024-01-01", "end": "2024-01-01"}
FIRST_DAY = {"start": "2024-01-01T00:00:00+01:00", "end": "2024-01-02T00:00:00+01:00"}


def a_range(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


@dg.asset
def above() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(data_version=dg.DataVersion("above-7"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def tell(client: PipesCloudFunctionClient, calls: FaultProxy, instance: dg.DagsterInstance) -> Any:
    """Runs an asset, and returns what each of its calls was told."""

    def tell(
        partitions_def: dg.PartitionsDefinition | None = None,
        *,
        each_partition: bool = False,
        tags: dict[str, str] | None = None,
        partition_key: str | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        @dg.asset(
            deps=[above],
            partitions_def=partitions_def,
            backfill_policy=dg.BackfillPolicy.single_run() if partitions_def else None,
            retry_policy=dg.RetryPolicy(max_retries=1),
        )
        def thing(context: dg.AssetExecutionContext) -> Any:
            assert isinstance(client, PipesCloudFunctionClient)
            event = {"task": "scripted", "tell_context": True, "report": context.retry_number == 1}
            told = {"context": context, "function_url": calls.url, "event": event, **options}
            if each_partition:
                return client.run_partitions(**told)
            return client.run(**told).get_results(implicit_materializations=False)

        dg.materialize([above], instance=instance)
        result = dg.materialize(
            [above, thing],
            selection=[thing],
            instance=instance,
            tags=tags,
            partition_key=partition_key,
        )
        entries = instance.all_logs(result.run_id)
        logged = [entry.user_message for entry in entries if entry.dagster_event is None]
        told = [json.loads(line[line.index("{") :]) for line in logged if '"run_id"' in line]
        assert {each["run_id"] for each in told} == {result.run_id}
        half = len(told) // 2  # the first half is of the first attempt
        assert {each["retry_number"] for each in told[:half]} == {0}
        assert {each["retry_number"] for each in told[half:]} == {1}
        return told[half:]

    return tell


def test_without_partitions(tell: Any) -> None:
    [told] = tell(extras={"a": 1}, run_tags=["team", "absent"], tags={"team": "x", "secret": "y"})

    assert told["partitions"] is None
    assert told["extras"] == {
        "a": 1,
        "run_tags": {"team": "x"},
        "upstream_data_versions": {"above": "above-7"},
    }


@pytest.mark.parametrize("each_partition", [False, True])
def test_one_partition(tell: Any, each_partition: bool) -> None:
    [told] = tell(DAYS, each_partition=each_partition, partition_key="2024-01-01", extras={"a": 1})

    assert told["partitions"] == FIRST
    assert told["window"] == FIRST_DAY
    assert told["extras"]["upstream_data_versions"] == {"above": "above-7"}
    assert told["extras"]["a"] == 1


def test_a_range_in_one_call(tell: Any) -> None:
    [told] = tell(DAYS, tags=a_range("2024-01-01", "2024-01-05"))

    assert told["partitions"] == {"start": "2024-01-01", "end": "2024-01-05"}
    assert told["window"] == {**FIRST_DAY, "end": "2024-01-06T00:00:00+01:00"}


def test_a_range_with_a_call_for_each(tell: Any) -> None:
    told = tell(
        DAYS,
        each_partition=True,
        tags={**a_range("2024-01-01", "2024-01-05"), "team": "x"},
        run_tags=["team"],
    )

    by_key = {each["partitions"]["start"]: each for each in told}
    assert sorted(by_key) == [f"2024-01-0{day}" for day in range(1, 6)]
    assert by_key["2024-01-01"]["partitions"] == FIRST
    assert by_key["2024-01-01"]["window"] == FIRST_DAY
    assert all(each["extras"]["run_tags"] == {"team": "x"} for each in told)


@pytest.mark.parametrize("each_partition", [False, True])
def test_partitions_without_time_windows(tell: Any, each_partition: bool) -> None:
    told = tell(CITIES, each_partition=each_partition, tags=a_range("ams", "ber"))

    assert {each["window"] for each in told} == {None}
    ranges = sorted((each["partitions"]["start"], each["partitions"]["end"]) for each in told)
    assert ranges == ([("ams", "ams"), ("ber", "ber")] if each_partition else [("ams", "ber")])


def test_partitions_in_two_dimensions(tell: Any) -> None:
    told = tell(
        DAYS_AND_CITIES, each_partition=True, tags=a_range("ams|2024-01-01", "ams|2024-01-02")
    )

    assert sorted(each["partitions"]["start"] for each in told) == [
        "ams|2024-01-01",
        "ams|2024-01-02",
    ]
    assert FIRST_DAY in [each["window"] for each in told]


def test_an_asset_without_partitions_in_a_run_with_a_range(tell: Any) -> None:
    [told] = tell(None, tags=a_range("2024-01-01", "2024-01-05"))

    assert told["partitions"] is None
