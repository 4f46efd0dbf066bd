"""What deployments know of the Cloud Run jobs."""

from deployment.environments import Environment
from deployment.job_checks import API, job_folders
from deployment.target import Target


def _expected_settings(environment: Environment) -> dict[str, str]:
    return {"JOB_NAME": environment["job_name"]}


JOBS = Target(
    kind="job",
    api=API,
    verb="runs",
    # Terraform ignores the image of a job: `just deploy` then builds and sets it.
    replacement="After Terraform, this deployment replaces it without a question. Ctrl-C stops.",
    find_folders=job_folders,
    expected_settings=_expected_settings,
)
