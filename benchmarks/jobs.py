"""What many partitions cost as the tasks of one execution of a job, and as calls of a function.

The floor of the job is its execution: the processes of its tasks, which Dagster neither starts nor
can make faster.

Runs in the orchestrator's environment of a rendered project with a job: `make benchmark`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from common import FUNCTIONS, make_client, print_machine, serve
from gcp_pipes.orchestrator import PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.cloud_run_job_client import PipesCloudRunJobClient
from google.cloud import storage
from local_cloud.cloud import storage_emulator
from local_cloud.project import TASKS
from local_cloud.run_admin import Execution, Job, RunAdmin, run_admin
from partitions import PARTITIONS, materialize

PARALLELISM = 50


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--partitions", type=int, default=1_000)
    arguments.add_argument("--rounds", type=int, default=1)
    options = arguments.parse_args()
    shutil.copy(FUNCTIONS / "nap.py", TASKS / "tasks" / "nap.py")
    with ExitStack() as stack:
        home, objects = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        os.environ["DAGSTER_HOME"] = str(home)
        (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        os.environ.update(stack.enter_context(storage_emulator(objects)))
        url = stack.enter_context(serve(TASKS / "main.py", THREADS=str(PARALLELISM + 28)))
        python = str(TASKS / ".venv" / "bin" / "python")
        job = Job(
            [python, "job.py"],
            TASKS,
            parallelism=PARALLELISM,
            ends_after=0,
            output=subprocess.DEVNULL,
        )
        admin = stack.enter_context(run_admin({"work": job}))
        print_machine()
        compare(url, admin, options.partitions, options.rounds)


def compare(url: str, admin: RunAdmin, partitions: int, rounds: int) -> None:
    """Calls of the function, and the execution of the job, in turn."""
    call_function(url, PARALLELISM)  # warmed up: connections and imports
    run_job(admin, PARALLELISM)
    function, job, execution, peak = [], [], [], []
    for _ in range(rounds):
        function.append(call_function(url, partitions))
        with peak_memory() as memory:
            job.append(run_job(admin, partitions))
        execution.append(duration(admin.executions[-1]))
        peak.append(memory())
        assert len(admin.executions[-1].tasks) == partitions
    print(f"\n{partitions} partitions of 0.2 s, {PARALLELISM} at a time (medians of {rounds})\n")
    for name, seconds in {
        "function": function,
        "job": job,
        "of which the execution": execution,
    }.items():
        each = statistics.median(seconds)
        print(f"{name:24}{each:8.1f} s {1000 * each / partitions:8.1f} ms a partition")
    ratio = statistics.median(a / b for a, b in zip(job, execution, strict=True))
    print(f"{'job / execution':24}{ratio:8.2f}")
    print(f"{'peak memory of the step':24}{statistics.median(peak):8.0f} MiB")


def call_function(url: str, partitions: int) -> float:
    """Seconds for a run that calls the function for each partition."""
    with closing(make_client()) as client:

        @dg.asset(
            name=f"called_{uuid.uuid4().hex}",
            partitions_def=PARTITIONS,
            backfill_policy=dg.BackfillPolicy.single_run(),
        )
        def called(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from client.run_partitions(
                context=context,
                function_url=url,
                event={"task": "nap"},
                max_in_flight=PARALLELISM,
            )

        return materialize(called, partitions)


def run_job(admin: RunAdmin, partitions: int) -> float:
    """Seconds for a run that runs the job once, with a task for each partition."""
    reader = PipesCloudStorageMessageReader(
        bucket=os.environ["MESSAGES_BUCKET"], client=storage.Client()
    )
    client = PipesCloudRunJobClient(
        reader, project="local", region="here", job="work", endpoint=admin.url
    )
    with closing(client):

        @dg.asset(
            name=f"run_{uuid.uuid4().hex}",
            partitions_def=PARTITIONS,
            backfill_policy=dg.BackfillPolicy.single_run(),
        )
        def run(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from client.run_partitions(context=context, event={"task": "nap"})

        return materialize(run, partitions)


def duration(execution: Execution) -> float:
    """Seconds from the start of an execution until its last process has ended."""
    while not execution.has_ended:
        time.sleep(0.1)
    times = execution.to_json()
    started, ended = (
        datetime.fromisoformat(times[f"{name}Time"]) for name in ("create", "completion")
    )
    return (ended - started).total_seconds()


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Watch the memory of this process during the block; the function returns its peak in MiB."""
    peaks, is_over = [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            peaks.append(psutil.Process().memory_info().rss / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(peaks)
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    main()
