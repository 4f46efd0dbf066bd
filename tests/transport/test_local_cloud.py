"""What `just demo` materializes, and that it stops what it has started."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from gcp_pipes.orchestrator.dagster_internals import NO_FURTHER_EVENT
from local_cloud.materialize_all import run_arguments, runs
from local_cloud.processes import interrupted_once, run_to_end
from local_cloud.results import add, new_report


def test_the_local_cloud_skips_an_asset_until_it_has_a_partition() -> None:
    shops = dg.DynamicPartitionsDefinition(name="shops")

    @dg.asset(partitions_def=shops)
    def sales() -> None: ...

    @dg.asset
    def people() -> None: ...

    definitions = dg.Definitions([people, sales])
    with dg.DagsterInstance.ephemeral() as instance:
        before = list(runs(definitions, instance))
        instance.add_dynamic_partitions("shops", ["Utrecht", "Delft"])
        after = list(runs(definitions, instance))

    assert before == [([people.key], [])]
    assert after == [*before, ([sales.key], ["Delft"])]


def test_a_report_shows_the_newest_partition_whichever_ended_last() -> None:
    @dg.asset(
        partitions_def=dg.StaticPartitionsDefinition(["Delft", "Gouda", "Breda"]),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def sales(context: dg.AssetExecutionContext) -> Iterator[Any]:
        for key in ("Gouda", "Breda", "Delft"):
            yield dg.AssetMaterialization(context.asset_key, metadata={"shop": key}, partition=key)
        yield dg.MaterializeResult(metadata=NO_FURTHER_EVENT)

    report = new_report()
    keys = ["Delft", "Gouda", "Breda"]
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.Definitions([sales]).resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, **run_arguments(keys))
        for entry in instance.all_logs(result.run_id):
            add(entry, report, keys)

    [asset] = report["assets"].values()
    assert asset["partition"] == "Breda"
    assert asset["partitions"] == 3
    assert asset["metadata"] == {"shop": "Breda"}


def sleeps(process: psutil.Process, seconds: str) -> bool:
    """Whether a process sleeps that long."""
    with suppress(psutil.Error):  # it has ended
        return seconds in process.cmdline()
    return False


def test_a_process_whose_start_is_interrupted_is_stopped(tmp_path: Path) -> None:
    """The signal comes at any moment of the start, which takes some milliseconds."""
    seconds = f"30.{random.randrange(10**9)}"  # by it the processes of this test are known

    def start_and_interrupt() -> None:
        interrupt = threading.Timer(random.uniform(0, 0.004), os.kill, (os.getpid(), signal.SIGINT))
        with interrupted_once():
            interrupt.start()
            run_to_end("sleep", ["sleep", seconds], environment={}, directory=tmp_path)

    for _ in range(50):
        with pytest.raises(KeyboardInterrupt):
            start_and_interrupt()

    assert not any(sleeps(child, seconds) for child in psutil.Process().children())
