"""The client that runs the Cloud Run job."""

from collections.abc import Iterator
from contextlib import closing

import dagster as dg

from gcp_pipes.orchestrator.cloud_run_job_client import PipesCloudRunJobClient

from ..job_settings import JobSettings
from ..settings import Settings
from .resources import message_reader


@dg.resource(required_resource_keys={"settings"})
def pipes_job_client(context: dg.InitResourceContext) -> Iterator[PipesCloudRunJobClient]:
    """Runs the Cloud Run job, and reads its messages from the bucket in the settings."""
    settings: Settings = context.resources.settings
    job = JobSettings.from_environment()
    with message_reader(settings) as reader:
        client = PipesCloudRunJobClient(
            message_reader=reader,
            project=job.google_cloud_project,
            region=job.google_cloud_region,
            job=job.job_name,
            timeout=job.job_timeout,
            impersonate=settings.impersonate_service_account,
            endpoint=job.cloud_run_endpoint,
        )
        with closing(client):
            yield client


@dg.definitions
def job_client() -> dg.Definitions:
    """The client, under the name by which assets ask for it."""
    return dg.Definitions(resources={"pipes_job_client": pipes_job_client})
