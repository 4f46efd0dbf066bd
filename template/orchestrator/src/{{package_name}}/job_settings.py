"""Settings of the Cloud Run job, from the environment variables of Dagster."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .settings import SettingsError, optional, required

_TIMEOUT = "86400"  # seconds: a day
_ENDPOINT = "https://run.googleapis.com"


@dataclass(frozen=True)
class JobSettings:
    """The Cloud Run job, and how to run it.

    Attributes:
        job_name: The name of the job.
        job_timeout: For how long a task may run, in seconds.
        google_cloud_project: The ID of the job's project.
        google_cloud_region: The job's region.
        cloud_run_endpoint: The URL of the Cloud Run Admin API; on your machine, of the local cloud.
    """

    job_name: str
    job_timeout: float
    google_cloud_project: str
    google_cloud_region: str
    cloud_run_endpoint: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "JobSettings":
        """Read each setting from the variable with its name in capitals.

        The variables without a default are `JOB_NAME`, `GOOGLE_CLOUD_PROJECT` and
        `GOOGLE_CLOUD_REGION`.

        Args:
            environment: The variables and their values. By default, those of this process.

        Raises:
            SettingsError: A variable is malformed, or one without a default is missing.
        """
        return cls(
            job_name=_job_name(environment),
            job_timeout=_job_timeout(environment),
            google_cloud_project=required(environment, "GOOGLE_CLOUD_PROJECT"),
            google_cloud_region=required(environment, "GOOGLE_CLOUD_REGION"),
            cloud_run_endpoint=optional(environment, "CLOUD_RUN_ENDPOINT") or _ENDPOINT,
        )


def _job_name(environment: Mapping[str, str]) -> str:
    name = required(environment, "JOB_NAME")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name):
        raise SettingsError(
            "JOB_NAME",
            f"must be the name of a job: lowercase letters, digits and hyphens; it is {name!r}.",
        )
    return name


def _job_timeout(environment: Mapping[str, str]) -> float:
    text = optional(environment, "JOB_TIMEOUT") or _TIMEOUT
    if not re.fullmatch(r"[0-9]+", text) or int(text) == 0:
        raise SettingsError(
            "JOB_TIMEOUT", f"must be the timeout of a task in seconds; it is {text!r}."
        )
    return float(text)
