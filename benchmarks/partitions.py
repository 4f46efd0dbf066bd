"""What many partitions in one step cost: ours, the floor, and the usual way, in one run.

The floor is the least that could be done: the same calls, uploads and downloads from a bare pool of
as many threads, and the same events written by the step. The usual way is a dynamic output, with a
process for each partition.

Runs in the orchestrator's environment of a rendered project: `make benchmark`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import dagster as dg
import requests
from common import FUNCTIONS, QUIET, make_client, print_machine, serve
from gcp_pipes.orchestrator.dagster_internals import NO_FURTHER_EVENT, materialization_tags
from google.cloud import storage
from local_cloud.cloud import storage_emulator
from local_cloud.project import TASKS
from requests.adapters import HTTPAdapter
from usual import usual

IN_FLIGHT = 100
LARGE = 10_000
SIZES = (330, 1_300)  # bytes of the two chunks of messages of a call, within a tenth
PARTITIONS = dg.StaticPartitionsDefinition([f"{number:05}" for number in range(LARGE)])


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--partitions", type=int, default=1_000)
    arguments.add_argument("--usual", type=int, default=40, help="partitions of the usual way")
    arguments.add_argument("--rounds", type=int, default=3, help="of ours and of the floor")
    arguments.add_argument("--sizes", type=int, nargs="*", default=[100, 1_000, LARGE])
    arguments.add_argument("--peak", type=int, help="only print the memory of so many in flight")
    options = arguments.parse_args()
    if options.peak is not None:
        print_peak(options.peak)
        return
    shutil.copy(FUNCTIONS / "nap.py", TASKS / "tasks" / "nap.py")
    with ExitStack() as stack:
        home, objects = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        os.environ["DAGSTER_HOME"] = str(home)
        (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        os.environ.update(stack.enter_context(storage_emulator(objects)))
        threads = str(IN_FLIGHT + 28)
        os.environ["NAP_URL"] = stack.enter_context(serve(TASKS / "main.py", THREADS=threads))
        os.environ["FLOOR_URL"] = stack.enter_context(
            serve(FUNCTIONS / "floor_nap.py", THREADS=threads)
        )
        print_machine()
        compare(options.partitions, options.rounds, options.usual)
        measure_sizes(options.sizes)
        measure_memory()


def compare(partitions: int, rounds: int, usual_partitions: int) -> None:
    """Ours and the floor, in turn; then the usual way."""
    for way in (run_floor, run_ours):
        way(IN_FLIGHT)  # warmed up: connections and imports
    seconds: dict[str, list[float]] = {"floor": [], "ours": []}
    for _ in range(rounds):
        seconds["floor"].append(run_floor(partitions))
        seconds["ours"].append(run_ours(partitions))
    ratios = [ours / floor for ours, floor in zip(seconds["ours"], seconds["floor"], strict=True)]
    ours, floor = statistics.median(seconds["ours"]), statistics.median(seconds["floor"])
    each = run_usual(usual_partitions) / usual_partitions
    print(f"\n{partitions} partitions of 0.2 s, {IN_FLIGHT} in flight (medians of {rounds})\n")
    print(f"floor                   {floor:8.1f} s {1000 * floor / partitions:8.1f} ms a partition")
    print(f"ours                    {ours:8.1f} s {1000 * ours / partitions:8.1f} ms a partition")
    print(f"usual, {usual_partitions:4} partitions  {'':8}   {1000 * each:8.1f} ms a partition")
    print(f"ours / floor            {statistics.median(ratios):8.2f}   {ratios}")
    print(f"usual / ours            {each / (ours / partitions):8.1f}")


def measure_sizes(sizes: list[int]) -> None:
    """What a partition costs in a small run, and in a large one."""
    print("\nA partition of ours, by the number of partitions in the run (medians)\n")
    for size in sizes:
        seconds = statistics.median(run_ours(size) for _ in range(max(1, min(10, 3_000 // size))))
        print(f"{size:6}                  {seconds:8.1f} s {1000 * seconds / size:8.1f} ms")


def measure_memory() -> None:
    """How much more memory a run takes with many calls in flight than with one."""
    one, many = (
        int(
            subprocess.run(
                [sys.executable, __file__, "--peak", str(in_flight)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
        )
        for in_flight in (1, IN_FLIGHT)
    )
    each = (many - one) / (IN_FLIGHT - 1) / 1024
    print("\nPeak memory of the step's process\n")
    print(f"1 call in flight        {one / 1024:8.1f} MiB")
    print(f"{IN_FLIGHT} calls in flight     {many / 1024:8.1f} MiB")
    print(f"a call in flight        {each:8.2f} MiB")


def print_peak(in_flight: int) -> None:
    """Run twice as many partitions as are in flight, and print the peak in KiB."""
    run_ours(2 * IN_FLIGHT, in_flight)
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent had, too
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def run_ours(partitions: int, in_flight: int = IN_FLIGHT) -> float:
    """Seconds for a run of an asset with so many partitions."""
    with closing(make_client()) as client:

        @dg.asset(
            name=f"ours_{uuid.uuid4().hex}",
            partitions_def=PARTITIONS,
            backfill_policy=dg.BackfillPolicy.single_run(),
        )
        def ours(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from client.run_partitions(
                context=context,
                function_url=os.environ["NAP_URL"],
                event={"task": "nap"},
                max_in_flight=in_flight,
            )

        return materialize(ours, partitions)


def run_floor(partitions: int) -> float:
    """Seconds for a run of an asset that calls from a bare thread pool, and writes the same events.

    Beside these, Dagster itself writes one for each partition when it makes the run.
    """
    local = threading.local()
    bucket = storage.Client().bucket(os.environ["MESSAGES_BUCKET"])
    bucket.client._http.mount("http://", HTTPAdapter(pool_maxsize=IN_FLIGHT))
    metadata = {f"value_{number}": dg.MetadataValue.int(number) for number in range(10)}

    def call(key: str) -> str:
        if not hasattr(local, "session"):
            local.session = requests.Session()
            local.session.trust_env = False
        names = [f"{uuid.uuid4().hex}/{number}" for number in (1, 2)]
        event = {"uploads": list(zip(names, SIZES, strict=True)), "context": "x" * 1_000}
        local.session.post(os.environ["FLOOR_URL"], json=event).raise_for_status()
        for name in names:
            bucket.blob(name).download_as_bytes()
        return key

    @dg.asset(
        name=f"floor_{uuid.uuid4().hex}",
        partitions_def=PARTITIONS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def floor(context: dg.AssetExecutionContext) -> Iterator[Any]:
        tags = materialization_tags(context.op_execution_context, context.asset_key, "", None)
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            for done in as_completed(pool.submit(call, key) for key in context.partition_keys):
                for number in (1, 2):
                    context.log.info(f"[{done.result()}] line {number}")
                yield dg.AssetMaterialization(
                    context.asset_key, partition=done.result(), metadata=metadata, tags=tags
                )
        yield dg.MaterializeResult(metadata=NO_FURTHER_EVENT)

    return materialize(floor, partitions)


def run_usual(partitions: int) -> float:
    """Seconds for a job with a process for each partition."""
    os.environ["PARTITIONS"] = str(partitions)
    with dg.DagsterInstance.get() as instance:
        started = time.monotonic()
        result = dg.execute_job(dg.reconstructable(usual), instance=instance, run_config=QUIET)
        assert result.success
        return time.monotonic() - started


def materialize(asset: dg.AssetsDefinition, partitions: int) -> float:
    """Materialize the first partitions of an asset in one run; return its seconds."""
    keys = PARTITIONS.get_partition_keys()[:partitions]
    with dg.DagsterInstance.get() as instance:
        started = time.monotonic()
        dg.materialize(
            [asset],
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": keys[0],
                "dagster/asset_partition_range_end": keys[-1],
            },
            run_config=QUIET,
        )
        seconds = time.monotonic() - started
        made = sorted(materialized(instance, asset.key))
    assert made == keys, "There is not exactly one materialization of each partition."
    return seconds


def materialized(instance: dg.DagsterInstance, asset: dg.AssetKey) -> Iterator[str]:
    """The partition of each materialization of an asset."""
    cursor, has_more = None, True
    while has_more:
        found = instance.fetch_materializations(asset, limit=1_000, cursor=cursor)
        yield from (str(record.partition_key) for record in found.records)
        cursor, has_more = found.cursor, found.has_more


if __name__ == "__main__":
    main()
