"""Assets that call the function while everything around them fails, and how their runs start."""

import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from google.cloud import storage

SETTINGS = json.loads(os.environ.get("CHAOS_SETTINGS", "{}"))
FOLDER = Path(SETTINGS.get("folder", "."))
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2027-01-01")
RETRY = dg.RetryPolicy(max_retries=30, delay=0.2)


def make_client() -> PipesCloudFunctionClient:
    """The client of a step, with short timeouts."""
    reader = PipesCloudStorageMessageReader(
        bucket=os.environ["MESSAGES_BUCKET"], client=storage.Client(), interval=0.2
    )
    return PipesCloudFunctionClient(reader, timeout=20, retry_timeout=10)


def event(what: str) -> dict[str, Any]:
    """The inputs of a call: they differ, but are the same each time. One in ten fails at first."""
    number = zlib.crc32(what.encode())
    return {
        "task": "ledgered",
        "ledger": str(FOLDER / "ledger"),
        "lines": 2,
        "pause": 0.05 + number % 100 / 200,
        "failures": int(number % 10 == 0),
    }


def tell_process() -> None:
    """Let the test know the process of a step."""
    with (FOLDER / "steps").open("a") as file:
        file.write(f"{os.getpid()} {psutil.Process().create_time()}\n")


def single(name: str) -> dg.AssetsDefinition:
    """An asset with one call."""

    @dg.asset(name=name, retry_policy=RETRY)
    def calling(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        tell_process()
        return (
            make_client()
            .run(context=context, function_url=SETTINGS["url"], event=event(name))
            .get_materialize_result()
        )

    return calling


def fan_out(name: str) -> dg.AssetsDefinition:
    """An asset with a call for each partition."""

    @dg.asset(
        name=name,
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRY,
    )
    def calling(context: dg.AssetExecutionContext) -> Iterator[Any]:
        tell_process()
        yield from make_client().run_partitions(
            context=context,
            function_url=SETTINGS["url"],
            event=event,
            max_in_flight=20,
        )

    return calling


def calls() -> dg.JobDefinition:
    """The job of the single calls."""
    assets = [single(name) for name in SETTINGS["calls"]]
    job = dg.define_asset_job("calls", dg.AssetSelection.all())
    return _job(assets, job)


def partitions() -> dg.JobDefinition:
    """The job of the calls for partitions."""
    return _job([fan_out(SETTINGS["fan_out"])], dg.define_asset_job("partitions"))


def _job(assets: list[dg.AssetsDefinition], job: Any) -> dg.JobDefinition:
    executor = dg.multiprocess_executor.configured(
        {
            "max_concurrent": 4,
            "start_method": {"forkserver": {"preload_modules": ["chaos_jobs"]}},
        }
    )
    return dg.Definitions(assets, jobs=[job], executor=executor).get_job_def(job.name)


def execute(job_name: str, parent_id: str | None) -> None:
    """Execute a job, or re-execute a run of it from failure."""
    job = {"calls": calls, "partitions": partitions}[job_name]
    tags = SETTINGS.get("tags", {})
    with dg.DagsterInstance.get() as instance:
        options = None
        if parent_id is not None:
            options = dg.ReexecutionOptions.from_failure(parent_id, instance)
            tags = {**tags, "dagster/is_resume_retry": "true"}
        dg.execute_job(
            dg.reconstructable(job),
            instance=instance,
            tags=tags,
            reexecution_options=options,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )


if __name__ == "__main__":
    import chaos_jobs  # not as __main__, which other processes cannot import

    chaos_jobs.execute(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
