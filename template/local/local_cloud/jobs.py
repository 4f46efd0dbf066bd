"""The Cloud Run jobs of the local cloud: each task of an execution is a process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from local_cloud.cloud import HEARTBEAT_INTERVAL
from local_cloud.credentials import OWN_HOME, uv_run
from local_cloud.project import TASKS, own_secrets, setting, task_folders
from local_cloud.run_admin import Job, run_admin


def job_folders() -> list[Path]:
    """The folders of the jobs: those with tasks and an entry point for jobs."""
    return [folder for folder in task_folders() if (folder / "job.py").exists()]


@contextmanager
def cloud_run_jobs(storage: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Execute jobs during the block, for requests to a stand-in for the Cloud Run Admin API.

    Args:
        storage: The variables that `cloud_storage` yielded.

    Yields:
        The environment variables that Dagster needs to run them.
    """
    name = setting("JOB_NAME")
    jobs = {
        name if folder == TASKS else f"{name}-{folder.name.replace('_', '-')}": _job(
            folder, storage
        )
        for folder in job_folders()
    }
    with run_admin(jobs) as admin:
        yield {
            "CLOUD_RUN_ENDPOINT": admin.url,
            "GOOGLE_CLOUD_PROJECT": setting("GOOGLE_CLOUD_PROJECT"),
            "GOOGLE_CLOUD_REGION": setting("GOOGLE_CLOUD_REGION"),
            "JOB_NAME": name,
        }


def _job(folder: Path, storage: Mapping[str, str]) -> Job:
    """The job in a folder."""
    own = {
        "CLOUD_RUN_JOB": "",  # with it, logs are lines of JSON
        "HEARTBEAT_INTERVAL": HEARTBEAT_INTERVAL,
    }
    return Job(
        uv_run(storage, "python", "job.py"),
        directory=folder,
        environment={**own_secrets(folder), **own, **storage, "HOME": OWN_HOME},
    )
