"""What Dagster's event log costs on SQLite and on PostgreSQL, side by side and in turn.

A log line, a call, a run that makes one call, and a partition of a run with many: the seconds, and
the rows and bytes that each leaves. Then what several processes write at once.

PostgreSQL runs on the same machine, behind a Unix socket. Another machine adds its round trips:
Dagster opens a connection for each event.

Runs in the orchestrator's environment of a rendered project: `make benchmark`.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from common import FUNCTIONS, QUIET, make_client, print_machine, serve
from local_cloud.cloud import storage_emulator
from local_cloud.project import TASKS
from storages import Storage, storages

IN_FLIGHT = 100
LARGE = 1_000
PARTITIONS = dg.StaticPartitionsDefinition([f"{number:05}" for number in range(LARGE)])
Work = Callable[[dg.DagsterInstance, int], float]
"""Does something so many times in one run, and returns the seconds that it took."""


@dataclass(frozen=True)
class Cost:
    """What one of many takes."""

    seconds: float
    rows: float
    size: float


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--lines", type=int, default=500, help="log lines, and of each process")
    arguments.add_argument("--calls", type=int, default=30, help="calls in a run")
    arguments.add_argument("--runs", type=int, default=10, help="runs that make one call")
    arguments.add_argument("--partitions", type=int, default=200, help=f"at most {LARGE}")
    arguments.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    options = arguments.parse_args()
    for task in ("noop", "nap"):
        shutil.copy(FUNCTIONS / f"{task}.py", TASKS / "tasks" / f"{task}.py")
    with ExitStack() as stack:
        objects = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ.update(stack.enter_context(storage_emulator(objects)))
        threads = str(IN_FLIGHT + 28)
        os.environ["FUNCTION_URL"] = stack.enter_context(serve(TASKS / "main.py", THREADS=threads))
        compared = stack.enter_context(storages())
        print_machine()
        works: dict[str, tuple[Work, int]] = {
            "a log line": (log_lines, options.lines),
            "a call": (make_calls, options.calls),
            "a run with one call": (make_runs, options.runs),
            "a partition": (make_partitions, options.partitions),
        }
        measure_works(compared, works, options.rounds)
        measure_writers(compared, options.processes, options.lines)


def measure_works(
    compared: dict[str, Storage], works: dict[str, tuple[Work, int]], rounds: int
) -> None:
    """What each kind of work takes, on each storage."""
    counts = ", ".join(f"{count} of `{name}`" for name, (_, count) in works.items())
    print(f"\nThe cost of one (medians of {rounds} rounds of {counts})\n")
    print(f"{'':22}{'SQLite':>34}{'PostgreSQL':>34}{'ratio':>8}")
    print(f"{'':22}" + 2 * f"{'time':>12}{'rows':>8}{'bytes':>14}")
    for name, (work, count) in works.items():
        costs = measure_work(compared, work, count, rounds)
        figures = (
            f"{1000 * cost.seconds:9.1f} ms{cost.rows:8.1f}{cost.size:14,.0f}"
            for cost in costs.values()
        )
        ratio = costs["PostgreSQL"].seconds / costs["SQLite"].seconds
        print(f"{name:22}" + "".join(figures) + f"{ratio:8.2f}")


def measure_work(
    compared: dict[str, Storage], work: Work, count: int, rounds: int
) -> dict[str, Cost]:
    """What one of `count` takes on each storage: the medians of rounds, in turn."""
    costs: dict[str, list[Cost]] = {name: [] for name in compared}
    for number in range(rounds + 1):
        for name, storage in compared.items():
            cost = cost_of(storage, work, count)
            if number > 0:  # the first round warms up: connections, tables and imports
                costs[name].append(cost)
    return {name: median(found) for name, found in costs.items()}


def cost_of(storage: Storage, work: Work, count: int) -> Cost:
    """Do `count` of a kind of work; return what one of them took."""
    with dg.DagsterInstance.from_config(str(storage.home)) as instance:
        rows, size = storage.rows(), storage.size()
        seconds = work(instance, count)
    return Cost(seconds / count, (storage.rows() - rows) / count, (storage.size() - size) / count)


def median(costs: list[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(
        statistics.median(cost.seconds for cost in costs),
        statistics.median(cost.rows for cost in costs),
        statistics.median(cost.size for cost in costs),
    )


def log_lines(instance: dg.DagsterInstance, count: int) -> float:
    """Log so many lines."""

    def log(context: dg.OpExecutionContext) -> None:
        for number in range(count):
            context.log.info(f"line {number}")

    return run_as_op(instance, log)


def make_calls(instance: dg.DagsterInstance, count: int) -> float:
    """Call the function so many times, from one step. The function logs two lines."""
    with closing(make_client()) as client:

        def call(context: dg.OpExecutionContext) -> None:
            for _ in range(count):
                client.run(
                    context=context,
                    function_url=os.environ["FUNCTION_URL"],
                    event={"task": "noop"},
                )

        return run_as_op(instance, call)


def make_runs(instance: dg.DagsterInstance, count: int) -> float:
    """Materialize an asset so many times, each in a run of its own, but in this process."""
    with closing(make_client()) as client:

        @dg.asset(name=f"one_{uuid.uuid4().hex}")
        def one(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return client.run(
                context=context, function_url=os.environ["FUNCTION_URL"], event={"task": "nap"}
            ).get_materialize_result()

        started = time.monotonic()
        for _ in range(count):
            dg.materialize([one], instance=instance, run_config=QUIET)
        return time.monotonic() - started


def make_partitions(instance: dg.DagsterInstance, count: int) -> float:
    """Materialize so many partitions of an asset, in one run."""
    keys = PARTITIONS.get_partition_keys()[:count]
    with closing(make_client()) as client:

        @dg.asset(
            name=f"many_{uuid.uuid4().hex}",
            partitions_def=PARTITIONS,
            backfill_policy=dg.BackfillPolicy.single_run(),
        )
        def many(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from client.run_partitions(
                context=context,
                function_url=os.environ["FUNCTION_URL"],
                event={"task": "nap"},
                max_in_flight=IN_FLIGHT,
            )

        started = time.monotonic()
        dg.materialize(
            [many],
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": keys[0],
                "dagster/asset_partition_range_end": keys[-1],
            },
            run_config=QUIET,
        )
        return time.monotonic() - started


def measure_writers(compared: dict[str, Storage], processes: list[int], count: int) -> None:
    """How many events several processes write at once, each in a run of its own."""
    print(f"\nProcesses that write {count} events each at once: events a second of all of them\n")
    print(f"{'':34}{'SQLite':>12}{'PostgreSQL':>12}{'ratio':>8}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(processes), spawn) as pool:
        write_at_once(pool, compared["SQLite"], "log lines", max(processes), 1)  # imports
        for kind in ("log lines", "materializations"):
            for number in processes:
                rates = {
                    name: write_at_once(pool, storage, kind, number, count)
                    for name, storage in compared.items()
                }
                ratio = rates["PostgreSQL"] / rates["SQLite"]
                print(
                    f"{kind}, processes: {number}".ljust(34)
                    + "".join(f"{rate:12.0f}" for rate in rates.values())
                    + f"{ratio:8.2f}"
                )


def write_at_once(pool: Executor, storage: Storage, kind: str, processes: int, count: int) -> float:
    """Let processes write at the same time; return how many events they write in a second."""
    start = time.time() + 1 + processes / 2  # when each has its run
    ended = [pool.submit(write, storage, kind, count, start) for _ in range(processes)]
    return processes * count / (max(future.result() for future in ended) - start)


def write(storage: Storage, kind: str, count: int, start: float) -> float:
    """Write events from a run in this process, from a time on; return when it has ended."""

    def body(context: dg.OpExecutionContext) -> None:
        time.sleep(max(0.0, start - time.time()))
        for number in range(count):
            if kind == "log lines":
                context.log.info(f"line {number}")
            else:
                context.log_event(dg.AssetMaterialization(f"written_{os.getpid()}"))
        ended.append(time.time())

    ended: list[float] = []
    with dg.DagsterInstance.from_config(str(storage.home)) as instance:
        run_as_op(instance, body)
    return ended[0]


def run_as_op(
    instance: dg.DagsterInstance, body: Callable[[dg.OpExecutionContext], object]
) -> float:
    """Run `body` in an op of a real run; return the seconds that it took."""
    seconds = 0.0

    @dg.op
    def measured(context: dg.OpExecutionContext) -> None:
        nonlocal seconds
        started = time.monotonic()
        body(context)
        seconds = time.monotonic() - started

    @dg.job
    def job() -> None:
        measured()

    job.execute_in_process(instance=instance, run_config=QUIET)
    return seconds


if __name__ == "__main__":
    main()
