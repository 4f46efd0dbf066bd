"""Runs a Cloud Run job from a Dagster asset: the client of the package."""

from collections.abc import Callable, Iterator, Sequence
from typing import Unpack

import dagster as dg

from gcp_pipes.orchestrator.auth import CredentialsError
from gcp_pipes.orchestrator.cloud_run_job import CloudRunJobLauncher, PipesCloudRunJobError
from gcp_pipes.orchestrator.context import Context
from gcp_pipes.orchestrator.event import Event
from gcp_pipes.orchestrator.executions import JobExecutions, RunClients, run_clients
from gcp_pipes.orchestrator.external_client import (
    CallOptions,
    ClientOptions,
    PipesExternalClient,
)
from gcp_pipes.orchestrator.message_reader import PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.partitions import PartitionEvent
from gcp_pipes.orchestrator.results import CompletedCall

_ENDPOINT = "https://run.googleapis.com"


class PipesCloudRunJobClient(PipesExternalClient):
    """Runs the work of an asset or op in a Cloud Run job, for days if needed.

    Each call is an execution of a job that exists. The account of Dagster needs
    `roles/run.jobsExecutorWithOverrides` and `roles/run.viewer` on the job.

    Args:
        message_reader: Reads the messages of the job.
        context_injector: Sends the Dagster context to the job. The default puts it into the
            environment.
        project: The Google Cloud project of the jobs.
        region: The region of the jobs.
        job: The name of the job to run, if a call names none.
        impersonate: The e-mail address of a service account to run jobs as. The default is the
            account that Dagster runs as.
        endpoint: The URL of the Cloud Run Admin API.
        options: See `ClientOptions`. The timeout counts from when the task has started. A call
            did not start if the API rejected it, and if there is no execution of it.
    """

    def __init__(
        self,
        message_reader: dg.PipesMessageReader,
        context_injector: dg.PipesContextInjector | None = None,
        *,
        project: str,
        region: str,
        job: str | None = None,
        impersonate: str | None = None,
        endpoint: str = _ENDPOINT,
        **options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(message_reader, context_injector, **options)
        self._place = f"projects/{project}/locations/{region}"
        self._job = job
        self._impersonate = impersonate
        self._endpoint = endpoint
        self._clients: RunClients | None = None  # guarded by the lock

    def run(  # type: ignore[override]  # it takes a job instead of a launcher
        self,
        *,
        context: Context,
        event: Event,
        job: str | None = None,
        args: Sequence[str] | None = None,
        task_count: int = 1,
        **options: Unpack[CallOptions],
    ) -> CompletedCall:
        """Run the job and wait until it has finished. Its log lines appear while it runs.

        If the API loses its response, the execution is looked for, and not started again. If the
        run is terminated, the execution is cancelled.

        Args:
            context: The context of the asset, the asset check, or the op.
            event: The task's inputs: a JSON object.
            job: The name of the job. The default is that of the client.
            args: Replace the arguments of the job's container; None keeps them.
            task_count: How many tasks the execution has; see `PipesExternalClient.run`.
            options: See `CallOptions`.

        Returns:
            What the task reported; see `PipesExternalClient.run`.

        Raises:
            PipesCloudRunJobError: The job could not be run or failed, it did not report every asset
                and check of the step, or messages were lost.
        """
        return super().run(
            context=context,
            launcher=self._launcher(job, args),
            event=event,
            task_count=task_count,
            **options,
        )

    def run_partitions(  # type: ignore[override]  # it takes a job instead of a launcher
        self,
        *,
        context: Context,
        event: Event | Callable[[str], Event],
        job: str | None = None,
        args: Sequence[str] | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[PartitionEvent]:
        """Run the job once for all partitions of the run: each is a task of one execution.

        How many tasks run at the same time is up to the job, by its `parallelism`. The results of a
        partition are in the event log when its task has ended. If the step is retried, only the
        partitions that failed are tasks of the next execution.

        Args:
            context: The context of the asset.
            event: The task's inputs: a JSON object, or a function that makes it for a partition
                key. That is called in one of the threads that run the job.
            job: The name of the job. The default is that of the client.
            args: Replace the arguments of the job's container; None keeps them.
            options: See `CallOptions`.

        Returns:
            What the asset yields, by `yield from`, which runs the job.

        Raises:
            PipesCloudRunJobError: While results are yielded: the job could not be run, or
                partitions failed.
        """
        return super().run_partitions(
            context=context,
            launcher=self._launcher(job, args),
            event=event,
            max_in_flight=max(len(context.op_execution_context.partition_keys), 1),
            **options,
        )

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            clients, self._clients = self._clients, None
        if clients is not None:
            clients.close()

    def _launcher(self, job: str | None, args: Sequence[str] | None) -> CloudRunJobLauncher:
        job = job or self._job
        if job is None:
            raise PipesCloudRunJobError("There is no job to run. Name one: `job`.")
        executions = JobExecutions(f"{self._place}/jobs/{job}", self._run_clients())
        bucket, reader = None, self._message_reader
        if isinstance(reader, PipesCloudStorageMessageReader):
            bucket = reader.client.bucket(reader.bucket)
        return CloudRunJobLauncher(executions, args=args, bucket=bucket)

    def _run_clients(self) -> RunClients:
        """The clients of the API, shared by all calls."""
        try:
            with self._lock:
                if self._clients is None:
                    self._clients = run_clients(self._endpoint, self._impersonate)
                return self._clients
        except CredentialsError as error:
            raise PipesCloudRunJobError(f"No job was run: {error}") from error
