"""Many partitions in one step: a call for each, so many at once."""

import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import (
    DAYS,
    QUIET,
    Define,
    Partitions,
    days,
    environment_without_pytest,
    eventually,
    serve,
    server_at,
    table,
)
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from faults import FaultProxy, Request, cut_after, respond
from gcp_pipes.orchestrator import PipesCloudFunctionClient
from local_cloud.processes import free_port
from local_cloud.project import TASKS


def test_a_partition_whose_event_cannot_be_made_fails_with_the_traceback(
    partitions: Partitions, define: Define
) -> None:
    keys = days(3)

    def make_event(partition_key: str) -> dict[str, Any]:
        if partition_key == keys[1]:
            raise LookupError("no such shop")
        return {"task": "scripted"}

    assert not partitions.run(define(run={"event": make_event}), *keys)

    assert partitions.materialized() == {keys[0]: 1, keys[2]: 1}
    [line] = [line for line in partitions.logged() if "The call could not be made" in line]
    assert line.startswith(f"[{keys[1]}] ")
    assert "in make_event" in line
    assert "no such shop" in partitions.failure().description


def test_each_partition_is_called_for_and_reported_once(
    partitions: Partitions, define: Define, calls: FaultProxy
) -> None:
    keys = days(60)

    assert partitions.run(define(metadata={"size": 3}, data_version="v", lines=1), *keys)

    assert partitions.materialized() == dict.fromkeys(keys, 1)
    assert len(calls.seen) == len(keys)
    materialization = partitions.materialization(keys[7])
    assert materialization.metadata["size"].value == 3
    assert {name for name in materialization.metadata if name.startswith("cloud_function")} == {
        "cloud_function_call",
        "cloud_function_seconds",
    }
    assert table(str(materialization.metadata["cloud_function_call"].value))["status"] == "200"
    assert materialization.tags is not None
    assert materialization.tags["dagster/data_version"] == "v"
    assert materialization.tags["dagster/code_version"]
    assert f"[{keys[7]}] thing line 0" in partitions.logged()
    assert partitions.logged()[-1] == "60 of 60 partitions are done, 0 of them failed"
    assert not [each for each in threading.enumerate() if each.name.startswith("pipes-")]


def test_no_more_calls_are_in_flight_than_allowed(
    partitions: Partitions, define: Define, calls: FaultProxy
) -> None:
    most = 0

    def count(request: Request) -> Any:
        nonlocal most
        most = max(most, calls.in_flight)
        return request.forward()

    calls.fail_always(count)

    assert partitions.run(define(lines=1, pause=0.1, max_in_flight=5), *days(30))

    assert most == 5


def test_the_event_can_be_made_for_each_partition(
    partitions: Partitions, client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    @dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    def thing(context: dg.AssetExecutionContext) -> Any:
        return client.run_partitions(
            context=context,
            function_url=calls.url,
            event=lambda key: {"task": "scripted", "metadata": {"day": key[-2:]}},
        )

    assert partitions.run(thing, *days(3))

    assert partitions.materialization(days(3)[2]).metadata["day"].value == "03"


def test_what_is_downstream_runs_when_all_partitions_are_done(
    partitions: Partitions, define: Define
) -> None:
    @dg.asset(deps=["thing"], partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    def below() -> None:
        pass

    keys = days(4)
    result = dg.materialize(
        [define(), below],
        instance=partitions.instance,
        tags={
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        },
        run_config=QUIET,
    )

    assert partitions.materialized() == dict.fromkeys(keys, 1)
    assert len(result.asset_materializations_for_node("below")) == len(keys)


def test_one_call_materializes_a_partition_of_several_assets(
    partitions: Partitions, client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    @dg.multi_asset(
        specs=[
            dg.AssetSpec("a", deps=["b"], partitions_def=DAYS),
            dg.AssetSpec("b", deps=["thing"], partitions_def=DAYS),
            dg.AssetSpec("left_out", partitions_def=DAYS, skippable=True),
            dg.AssetSpec("thing", partitions_def=DAYS),
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context,
            function_url=calls.url,
            event={"task": "scripted", "assets": ["thing", "b", "a"]},
        )

    keys = days(3)
    assert partitions.run(thing, *keys)

    assert len(calls.seen) == len(keys)
    for name, made in {"thing": keys, "b": keys, "a": keys, "left_out": []}.items():
        partitions.key = dg.AssetKey(name)
        assert partitions.materialized() == dict.fromkeys(made, 1)


def test_a_failed_partition_fails_the_step_at_the_end_and_what_succeeded_stays(
    partitions: Partitions, define: Define
) -> None:
    keys = days(30)
    bad = keys[3], keys[17]

    assert not partitions.run(define(failing_partitions=bad), *keys)

    good = [key for key in keys if key not in bad]
    assert partitions.materialized() == dict.fromkeys(good, 1)
    summary = partitions.failure().description
    assert summary.startswith("2 of 30 partitions failed.\n")
    assert f"\n{bad[0]}: ValueError: {bad[0]} is out of luck\n" in summary
    assert "28 succeeded." in summary
    assert partitions.failure().metadata["failed_partitions"].value == list(bad)
    errors = [line for line in partitions.logged() if line.startswith(f"[{bad[0]}] The cloud")]
    assert "in run\n" in errors[0]  # the function's own traceback
    assert partitions.statuses(*good) == {AssetPartitionStatus.MATERIALIZED}
    assert partitions.statuses(*bad) == {AssetPartitionStatus.FAILED}


def test_a_retry_of_the_step_calls_only_for_missing_partitions(
    partitions: Partitions, define: Define, calls: FaultProxy
) -> None:
    keys = days(20)
    retried = dg.RetryPolicy(max_retries=1)

    assert not partitions.run(define(failing_partitions=[keys[5]], retry_policy=retried), *keys)

    assert partitions.materialized() == {key: 1 for key in keys if key != keys[5]}
    assert len(calls.seen) == len(keys) + 1
    assert "19 of 20 partitions were materialized by an earlier attempt" in partitions.logged()


def test_several_hundred_503s_lose_nothing(
    partitions: Partitions, define: Define, calls: FaultProxy
) -> None:
    calls.fail(*itertools.repeat(respond(503), 300))
    keys = days(100)

    assert partitions.run(define(max_in_flight=50, run={"timeout": 60, "retry_timeout": 60}), *keys)

    assert partitions.materialized() == dict.fromkeys(keys, 1)
    assert len(calls.seen) == len(keys) + 300


def test_a_call_is_retried_for_longer_while_other_calls_are_running(
    partitions: Partitions, define: Define, calls: FaultProxy
) -> None:
    """As where there are more calls in flight than the function has room for."""
    lock = threading.Lock()

    def serve_one(request: Request) -> Any:
        if not lock.acquire(blocking=False):
            return respond(429)(request)
        try:
            return request.forward()
        finally:
            lock.release()

    calls.fail_always(serve_one)
    keys = days(4)

    assert partitions.run(
        define(max_in_flight=4, lines=1, pause=3, run={"retry_timeout": 5}), *keys
    )

    assert partitions.materialized() == dict.fromkeys(keys, 1)


def test_a_function_that_dies_fails_only_the_calls_in_flight(
    partitions: Partitions,
    client: PipesCloudFunctionClient,
    define: Define,
    writing_proxy: FaultProxy,
) -> None:
    port = free_port()
    keys = days(60)
    asset = define(
        url=f"http://127.0.0.1:{port}",
        max_in_flight=10,
        lines=1,
        pause=0.3,
        run={"timeout": 30, "retry_timeout": 30},
    )

    def serve_and_die() -> None:
        with serve(TASKS / "main.py", writing_proxy.url, port=port, THREADS="40") as url:
            eventually(lambda: len(writing_proxy.seen) > stored + 30)
            for worker in server_at(url).children():
                worker.kill()
        with serve(TASKS / "main.py", writing_proxy.url, port=port, THREADS="40"):
            done.wait(60)

    done = threading.Event()
    stored = len(writing_proxy.seen)
    serving = threading.Thread(target=serve_and_die)
    serving.start()
    try:
        assert not partitions.run(asset, *keys)
    finally:
        done.set()
        serving.join()

    materialized = partitions.materialized()
    failed = set(keys) - set(materialized)
    assert set(materialized.values()) == {1}
    assert 0 < len(failed) <= 10
    assert partitions.failure().description.startswith(f"{len(failed)} of 60 partitions failed.")
    assert set(partitions.failure().metadata["failed_partitions"].value) == failed
    assert partitions.statuses(*materialized) == {AssetPartitionStatus.MATERIALIZED}
    assert partitions.statuses(*failed) == {AssetPartitionStatus.FAILED}


def test_no_further_call_is_made_when_the_function_is_unreachable(
    partitions: Partitions, define: Define
) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    assert not partitions.run(define(url=url, run={"retry_timeout": 1}), *days(500))

    summary = partitions.failure().description
    counts = re.match(r"(\d+) of 500 partitions failed, and (\d+) were not started.", summary)
    assert counts
    failed, not_started = map(int, counts.groups())
    assert failed + not_started == 500
    assert 8 <= failed <= 16  # a thread may have started one more
    assert "Connection refused" in summary
    assert not partitions.materialized()


def test_a_check_is_evaluated_once_for_all_partitions(
    partitions: Partitions, define: Define
) -> None:
    keys = days(10)
    specs = [dg.AssetCheckSpec("no_doubt", asset="thing")]

    assert partitions.run(define(doubtful_partitions=[keys[2]], check_specs=specs), *keys)

    [evaluation] = partitions.runs[0].get_asset_check_evaluations()
    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    assert evaluation.metadata["partitions_checked"].value == 10
    assert evaluation.metadata["failed_partitions"].value == [keys[2]]
    assert evaluation.metadata["doubts"].value == 1


@pytest.mark.parametrize("severity", list(dg.AssetCheckSeverity))
def test_a_retry_keeps_what_a_check_found_before(
    severity: dg.AssetCheckSeverity, partitions: Partitions, define: Define, calls: FaultProxy
) -> None:
    keys = days(10)
    asset = define(
        doubtful_partitions=[keys[2]],
        severity=severity.value,
        failing_at_first=[keys[5]],
        check_specs=[dg.AssetCheckSpec("no_doubt", asset="thing", blocking=True)],
        retry_policy=dg.RetryPolicy(max_retries=1),
    )

    succeeded = partitions.run(asset, *keys)

    assert len(calls.seen) == len(keys) + 1
    assert partitions.materialized() == dict.fromkeys(keys, 1)
    first, second = partitions.runs[0].get_asset_check_evaluations()
    for evaluation, checked in ((first, 9), (second, 10)):
        assert not evaluation.passed
        assert evaluation.severity is severity
        assert evaluation.metadata["failed_partitions"].value == [keys[2]]
        assert evaluation.metadata["partitions_checked"].value == checked
    assert succeeded == (severity is dg.AssetCheckSeverity.WARN)  # it is blocking


def test_a_lost_response_is_no_error_if_the_messages_are_complete(
    partitions: Partitions, define: Define, calls: FaultProxy
) -> None:
    """Also where so much waits to be written that there is room for no further word."""
    calls.fail_always(cut_after)
    keys = days(12)

    assert partitions.run(define(lines=40, max_in_flight=2), *keys)

    assert partitions.materialized() == dict.fromkeys(keys, 1)
    said = [line for line in partitions.logged() if "The messages are complete." in line]
    assert len(said) == len(keys)


def test_partitions_of_several_dimensions_have_their_tags(
    partitions: Partitions, client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    places = dg.MultiPartitionsDefinition(
        {"day": DAYS, "place": dg.StaticPartitionsDefinition(["here", "there"])}
    )

    @dg.asset(partitions_def=places, backfill_policy=dg.BackfillPolicy.single_run())
    def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context, function_url=calls.url, event={"task": "scripted"}
        )

    assert partitions.run(thing, "2024-01-01|here", "2024-01-02|here")

    tags = partitions.materialization("2024-01-02|here").tags
    assert tags is not None
    assert tags["dagster/partition/day"] == "2024-01-02"
    assert tags["dagster/partition/place"] == "here"


def test_an_asset_is_up_to_date_with_another_of_the_same_call(
    partitions: Partitions, client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    @dg.multi_asset(
        specs=[
            dg.AssetSpec("thing", partitions_def=DAYS),
            dg.AssetSpec("next", deps=["thing"], partitions_def=DAYS),
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context,
            function_url=calls.url,
            event={"task": "scripted", "assets": ["thing", "next"]},
        )

    for _ in range(2):
        assert partitions.run(thing, *days(2))

    for key in days(2):
        partitions.key = dg.AssetKey("thing")
        [_, record] = partitions.records(key)
        partitions.key = dg.AssetKey("next")
        [_, following] = partitions.records(key)
        assert following.asset_materialization is not None
        tags = following.asset_materialization.tags
        assert tags is not None
        assert tags["dagster/input_event_pointer/thing"] == str(record.storage_id)


def test_a_partitioned_check_is_evaluated_for_each_partition(
    partitions: Partitions, define: Define
) -> None:
    keys = days(5)
    spec = dg.AssetCheckSpec("no_doubt", asset="thing", partitions_def=DAYS)

    assert partitions.run(define(doubtful_partitions=[keys[2]], check_specs=[spec]), *keys)

    evaluations = partitions.runs[0].get_asset_check_evaluations()
    assert {each.partition: each.passed for each in evaluations} == {
        key: key != keys[2] for key in keys
    }


def test_an_undeclared_check_fails_its_partition(partitions: Partitions, define: Define) -> None:
    assert not partitions.run(define(doubtful_partitions=[]), *days(2))

    assert "reported the check thing:no_doubt, which the" in partitions.failure().description


def test_observations_and_custom_messages_are_in_the_log(
    partitions: Partitions, define: Define
) -> None:
    keys = days(3)

    assert partitions.run(define(observed=["elsewhere/seen"], custom_messages=[{"a": 1}]), *keys)

    records = partitions.instance.fetch_observations(
        dg.AssetKey(["elsewhere", "seen"]), limit=10
    ).records
    assert sorted(str(record.partition_key) for record in records) == keys
    assert f"[{keys[0]}] Custom message: {{'a': 1}}" in partitions.logged()


def test_a_metadata_value_of_a_wrong_type_fails_its_partition_and_no_other(
    partitions: Partitions, define: Define
) -> None:
    keys = days(3)
    nonsense = {"raw_value": "many", "type": "table"}

    assert not partitions.run(define(metadata={"nonsense": nonsense}), *keys)

    assert partitions.failure().description.startswith("3 of 3 partitions failed.")
    assert "'nonsense' is not of the type 'table'" in partitions.failure().description


def test_an_invalid_maximum_in_flight_is_rejected(partitions: Partitions, define: Define) -> None:
    assert not partitions.run(define(max_in_flight=0), *days(2))

    assert "max_in_flight must be 1 or more; it is 0." in str(partitions.failure())


def test_results_that_are_not_yielded_fail_the_step(
    partitions: Partitions, client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    @dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    def thing(context: dg.AssetExecutionContext) -> None:
        client.run_partitions(context=context, function_url=calls.url, event={"task": "scripted"})

    assert not partitions.run(thing, *days(2))

    assert "End the asset with `yield from client.run_partitions" in str(partitions.failure())


def test_a_run_of_one_partition_is_a_single_call(
    partitions: Partitions, define: Define, calls: FaultProxy
) -> None:
    [key] = days(1)

    result = dg.materialize(
        [define(lines=1)], instance=partitions.instance, partition_key=key, run_config=QUIET
    )

    assert result.success
    assert partitions.materialized() == {key: 1}
    assert len(calls.seen) == 1


INTERRUPTED = """
import sys
import threading
import dagster as dg
from google.cloud import storage
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader

bucket, url, lines = sys.argv[1:]
client = PipesCloudFunctionClient(
    PipesCloudStorageMessageReader(bucket=bucket, client=storage.Client())
)
DAYS = dg.DailyPartitionsDefinition("2024-01-01")

@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def thing(context: dg.AssetExecutionContext):
    yield from client.run_partitions(
        context=context,
        function_url=url,
        event=lambda key: {
            "task": "scripted",
            "lines": min(1, int(lines)) if key < "2024-01-04" else int(lines),
            "pause": 0.2,
        },
    )

with dg.DagsterInstance.get() as instance:
    dg.materialize([thing], instance=instance, tags={
        "dagster/asset_partition_range_start": "2024-01-01",
        "dagster/asset_partition_range_end": "2026-03-01",
    })
"""


@contextmanager
def interrupted_run(
    home: Path, emulator: Mapping[str, str], url: str, lines: int
) -> Iterator["subprocess.Popen[str]"]:
    """A run in a process of its own, which the block is to interrupt."""
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, emulator["MESSAGES_BUCKET"], url, str(lines)],
        env={**environment_without_pytest(), "DAGSTER_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_an_interrupted_step_cancels_its_calls_and_ends_all_threads(
    partitions: Partitions,
    tmp_path: Path,
    emulator: Mapping[str, str],
    calls: FaultProxy,
) -> None:
    with interrupted_run(tmp_path, emulator, calls.url, lines=1000) as process:
        eventually(lambda: calls.in_flight == 10)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)

    eventually(lambda: not calls.in_flight, 5)
    assert calls.in_flight == 0, printed  # the function has ended them
    assert len(calls.seen) == 13 + 1, printed  # three that ended, ten in flight, one to cancel them
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        partitions.instance = instance
        assert sorted(partitions.materialized()) == days(3)
        [run] = instance.get_runs()
        said = [entry.user_message for entry in instance.all_logs(run.run_id)]
        assert sum("TaskCancelledError" in each for each in said) >= 10


def test_a_step_that_is_interrupted_between_its_events_ends_too(
    tmp_path: Path, emulator: Mapping[str, str], calls: FaultProxy
) -> None:
    """Much of its time Dagster writes events, and then asks for no further one."""
    with interrupted_run(tmp_path, emulator, calls.url, lines=0) as process:
        eventually(lambda: len(calls.seen) > 30)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    started = len(calls.seen)
    assert started < 700  # of 791
    time.sleep(1)
    assert len(calls.seen) == started
    assert calls.in_flight == 0
