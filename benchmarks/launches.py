"""How many runs Dagster's daemon launches, and one machine finishes, when many are queued at once.

Each run is a process of its own that does nothing. First on SQLite, then on PostgreSQL.

Runs in the orchestrator's environment of a rendered project: `make benchmark`.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
from common import print_machine
from storages import Storage, storages

DEFINITIONS = Path(__file__).parent / "queued.py"
TIMEOUT = 300.0  # seconds
IN_TURN = "  dequeue_use_threads: false\n"  # Dagster's default
AT_ONCE = "  dequeue_use_threads: true\n  dequeue_num_workers: 4\n"


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--concurrent", type=int, default=10, help="max_concurrent_runs")
    options = arguments.parse_args()
    print_machine()
    print(f"\n{options.runs} runs are queued at once; {options.concurrent} may be in progress.")
    print("Each is a process that does nothing. The rates are runs in a second.\n")
    print(f"{'':36}{'queued':>10}{'started':>10}{'finished':>10}")
    for way, threads in {"one at a time": IN_TURN, "four threads": AT_ONCE}.items():
        queue = f"run_queue:\n  max_concurrent_runs: {options.concurrent}\n{threads}"
        with storages(queue) as compared:
            for name, storage in compared.items():
                print_launches(f"{name}, launched {way}", launch(storage, options.runs))


def launch(storage: Storage, runs: int) -> list[dg.RunRecord]:
    """Let a daemon launch so many runs; return what Dagster has recorded of each."""
    with (
        dg.DagsterInstance.from_config(str(storage.home)) as instance,
        daemon(storage.home, runs),
    ):
        deadline = time.monotonic() + TIMEOUT
        finished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])
        while len(records := instance.get_run_records(finished)) < runs:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(records)} of {runs} runs finished in {TIMEOUT:.0f} s.")
            time.sleep(1.0)
        return list(records)


@contextmanager
def daemon(home: Path, runs: int) -> Iterator[None]:
    """Run Dagster's daemon, with the definitions, during the block."""
    environment = {**os.environ, "DAGSTER_HOME": str(home), "RUNS": str(runs)}
    with (home / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "--python-file", str(DEFINITIONS)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # with its code server, and the processes of runs
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a code server may outlive its daemon


def print_launches(name: str, records: list[dg.RunRecord]) -> None:
    """The rates at which runs were queued, started and finished."""
    times = (
        [record.create_timestamp.timestamp() for record in records],
        [record.start_time or math.inf for record in records],
        [record.end_time or math.inf for record in records],
    )
    print(f"{name:36}" + "".join(f"{rate(sorted(each)):10.2f}" for each in times))


def rate(times: list[float]) -> float:
    """How many follow the first one in a second."""
    return (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    main()
