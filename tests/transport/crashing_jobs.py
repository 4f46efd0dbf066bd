"""Assets whose steps and runs are killed, and the launcher of their runs."""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import dagster as dg
import psutil
from dagster._core.launcher import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from gcp_pipes.orchestrator import (
    ClientOptions,
    PipesCloudFunctionClient,
    PipesCloudStorageMessageReader,
)
from gcp_pipes.orchestrator.cloud_run_job_client import PipesCloudRunJobClient
from google.cloud import storage

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2027-01-01")


def folder() -> Path:
    """Where the test, the runs and the function leave what others read."""
    return Path(os.environ["CRASHING_FOLDER"])


class Settings(dg.Config):
    """What a step does."""

    url: str
    job: str | None = None
    lines: int = 1
    pause: float = 1.0
    failures: int = 0
    forward_termination: bool = True
    max_in_flight: int = 1
    count: int = 1
    asset_failures: int = 0


@functools.cache
def client(settings: Settings) -> Any:
    """The client of the process: of the function at the URL, or of a job, by the API there."""
    reader = PipesCloudStorageMessageReader(
        bucket=os.environ["MESSAGES_BUCKET"], client=storage.Client(), interval=0.2
    )
    options = ClientOptions(
        timeout=30, retry_timeout=20, forward_termination=settings.forward_termination
    )
    if settings.job is None:
        return PipesCloudFunctionClient(reader, **options)
    return PipesCloudRunJobClient(
        reader, project="local", region="europe-west4", endpoint=settings.url, **options
    )


def target(settings: Settings) -> dict[str, Any]:
    """What is called."""
    return {"function_url": settings.url} if settings.job is None else {"job": settings.job}


def event(settings: Settings) -> dict[str, Any]:
    """The inputs of the task."""
    inputs = settings.model_dump(include={"lines", "pause", "failures"})
    return {"task": "ledgered", "ledger": str(folder() / "ledger"), **inputs}


def tell_process() -> int:
    """Let the test know the process of the step; return how often it was executed."""
    with (folder() / "steps").open("a+") as file:
        file.write(f"{os.getpid()}\n")
        file.seek(0)
        return len(file.readlines())


@dg.asset(retry_policy=dg.RetryPolicy(max_retries=20, delay=0.2))
def one(context: dg.AssetExecutionContext, config: Settings) -> dg.MaterializeResult[None]:
    """One call, or several that are the same."""
    number = tell_process()
    for _ in range(config.count):
        done = client(config).run(context=context, event=event(config), **target(config))
    if number <= config.asset_failures:
        raise ValueError("The asset is out of luck.")
    result: dg.MaterializeResult[None] = done.get_materialize_result()
    return result


@dg.asset(
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=0.5),
)
def many(context: dg.AssetExecutionContext, config: Settings) -> Any:
    """A call for each partition."""
    tell_process()
    options = {} if config.job else {"max_in_flight": config.max_in_flight}
    yield from client(config).run_partitions(
        context=context, event=event(config), **target(config), **options
    )


defs = dg.Definitions(
    [one, many],
    jobs=[dg.define_asset_job("call_one", [one]), dg.define_asset_job("call_many", [many])],
    executor=dg.multiprocess_executor,
)


class ProcessLauncher(RunLauncher, ConfigurableClass):
    """Executes each run in a process, and can resume it, as Dagster's launcher for Kubernetes."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """As in the base class."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """It has no settings."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> Self:
        """As in the base class."""
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the process of a run."""
        run = context.dagster_run
        assert run.job_code_origin is not None
        self._start(
            run.run_id,
            ExecuteRunArgs(run.job_code_origin, run.run_id, self._instance.get_ref()),
        )

    def resume_run(self, context: ResumeRunContext) -> None:
        """Start another process for a run."""
        run = context.dagster_run
        assert run.job_code_origin is not None
        self._start(
            run.run_id, ResumeRunArgs(run.job_code_origin, run.run_id, self._instance.get_ref())
        )

    def _start(self, run_id: str, arguments: ExecuteRunArgs | ResumeRunArgs) -> None:
        found = arguments.get_command_args()
        command = [sys.executable, "-m", "dagster", *found[found.index("api") :]]
        process = subprocess.Popen(command, start_new_session=True)
        (folder() / f"worker-{run_id}").write_text(str(process.pid))

    def terminate(self, run_id: str) -> bool:
        """Interrupt the process of a run, as Dagster's own launchers do."""
        run = self._instance.get_run_by_id(run_id)
        assert run is not None
        self._instance.report_run_canceling(run)
        os.kill(int((folder() / f"worker-{run_id}").read_text()), signal.SIGINT)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """It knows whether the process of a run is alive."""
        return True

    @property
    def supports_resume_run(self) -> bool:
        """It can resume a run."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a run is alive."""
        try:
            process = psutil.Process(int((folder() / f"worker-{run.run_id}").read_text()))
            is_running = process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            is_running = False
        return CheckRunHealthResult(WorkerStatus.RUNNING if is_running else WorkerStatus.FAILED)


def call_one() -> dg.JobDefinition:
    """The job, for Dagster to load it in other processes."""
    return defs.get_job_def("call_one")


def call_many() -> dg.JobDefinition:
    """As above."""
    return defs.get_job_def("call_many")


def reexecute(run_id: str) -> None:
    """Re-execute a run from failure."""
    with dg.DagsterInstance.get() as instance:
        parent = instance.get_run_by_id(run_id)
        assert parent is not None
        job = {"call_one": call_one, "call_many": call_many}[parent.job_name]
        dg.execute_job(
            dg.reconstructable(job),
            instance=instance,
            run_config=parent.run_config,
            tags={**parent.tags, "dagster/is_resume_retry": "true"},  # as Dagster's page does
            reexecution_options=dg.ReexecutionOptions.from_failure(run_id, instance),
        )


if __name__ == "__main__":
    import crashing_jobs  # not as __main__, which other processes cannot import

    crashing_jobs.reexecute(sys.argv[1])
