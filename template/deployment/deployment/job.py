"""Deploys new code to the Cloud Run jobs of an environment: `just deploy-job ENVIRONMENT`.

With the name of a folder, it deploys only that job. `just deploy` and CI run this. It only needs
the roles of the deployer: to upload bundles, to build images, and to update jobs that exist. At an
older commit, it rolls back.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

from deployment.advice import explained
from deployment.bundle import Bundle, deployed_bundle
from deployment.deployer import deploy_code
from deployment.environments import Environment
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, GoogleError
from deployment.image import Image, build_image
from deployment.job_target import JOBS
from deployment.project import TASKS
from deployment.sources import upload_bundle


@dataclass(frozen=True)
class Waits:
    """How long a deployment waits, in seconds.

    Attributes:
        interval: Between two requests for its state.
        build: Until the build times out. One takes about two minutes.
        update: Until the update times out. One takes seconds.
    """

    interval: float = 5.0
    build: float = 20 * 60.0
    update: float = 5 * 60.0


_WAITS = Waits()


def update_job(
    api: GoogleApi, environment: Environment, bundle: Bundle, waits: Waits = _WAITS
) -> bool:
    """Build an image from the bundle, and let the job run it from its next execution on.

    Executions that are running go on with the image that they have started with.

    Args:
        api: Sends the requests, with the credentials of the deployer or of a user with its roles.
        environment: The environment to deploy to. Its job must exist.
        bundle: The new code.
        waits: How long to wait.

    Returns:
        True if the job was updated; False if it already runs the bundle.

    Raises:
        DeploymentError: The job does not run the new code.
    """
    try:
        return _update(api, environment, bundle, waits)
    except GoogleError as error:
        raise explained(error, JOBS.kind, environment) from error


def _update(api: GoogleApi, environment: Environment, bundle: Bundle, waits: Waits) -> bool:
    if not (bundle.folder / "Dockerfile").exists():
        raise DeploymentError(
            f"{bundle.folder.name}/Dockerfile, from which the job's image is built, is missing. "
            f"The template has one, in {TASKS.name}/."
        )
    url = JOBS.url(environment, bundle.folder)
    job = api.request("GET", url)
    before = deployed_bundle(job)
    if before == bundle.label and _is_ready(job):
        return False
    source = {"bucket": environment["sources_bucket"], "object": f"{bundle.sha256}.zip"}
    upload_bundle(api, bundle, **source)
    image = Image.of(environment, f"{bundle.folder.name}-job", bundle)
    address = build_image(api, environment, image, source, waits.interval, waits.build)
    job["labels"] = {**job.get("labels", {}), "bundle": bundle.label}
    job["template"]["template"]["containers"][0]["image"] = address
    _replace(api, url, job)
    _wait(api, url, bundle, before, waits)
    return True


def _is_ready(job: dict[str, Any]) -> bool:
    """Whether the last update of the job has succeeded."""
    state = job.get("terminalCondition", {}).get("state")
    return state == "CONDITION_SUCCEEDED" and not job.get("reconciling")


def _replace(api: GoogleApi, url: str, job: dict[str, Any]) -> None:
    """Replace the job. Its `etag` makes Google reject that if the job was changed meanwhile."""
    try:
        api.request("PATCH", url, json=job)
    except GoogleError as error:
        if error.status != 409:
            raise
        if not error.was_retried:  # otherwise, a request without a response may have replaced it
            raise DeploymentError(
                "Another deployment has changed the job. Deploy again."
            ) from error


def _wait(api: GoogleApi, url: str, bundle: Bundle, before: str | None, waits: Waits) -> None:
    """Wait until the job runs the bundle. At first, Google may still show what it ran before.

    The deployer may look at the job, and not at the operation, which belongs to the project.

    Raises:
        DeploymentError: It does not.
    """
    deadline = time.monotonic() + waits.update
    while time.monotonic() < deadline:
        job = api.request("GET", url)
        label = deployed_bundle(job)
        if label not in (bundle.label, before):
            raise DeploymentError(
                "Another deployment has replaced this one. Deploy again, when no other one is "
                "running."
            )
        if label == bundle.label and _is_ready(job):
            return
        condition = job.get("terminalCondition", {})
        has_failed = condition.get("state") == "CONDITION_FAILED" and not job.get("reconciling")
        if label == bundle.label and has_failed:
            raise DeploymentError(f"The job cannot run: {condition.get('message')}")
        time.sleep(waits.interval)
    raise DeploymentError(
        f"The job was not updated within {waits.update / 60:.0f} minutes. Deploy again."
    )


if __name__ == "__main__":
    sys.exit(deploy_code(JOBS, update_job))
