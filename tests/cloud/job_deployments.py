"""Deployments of a job in a Google Cloud that misbehaves: runs in the environment of a project.

    python job_deployments.py

The waits are parts of the real ones. Prints a JSON object with the result of each.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import deployment.job
from deployment.bundle import Bundle
from deployment.environments import find_environment
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, find_credentials
from deployment.project import TASKS
from google_cloud import DROPPED, HOSTS, Cloud, Fault, JobRollout, error, first_job
from google_stand_ins import Google, google_stand_ins, service_account_key

NEW = hashlib.sha256(b"new").hexdigest()
WAITS = deployment.job.Waits(interval=0.005, build=4.0, update=4.0)

BUILD = r"POST cloudbuild.*"
LOOK_AT_BUILD = r"GET cloudbuild.*"
LOOK = r"GET run.*"
UPDATE = r"PATCH run.*"
UNAVAILABLE = error(503, "The service is currently unavailable.")


@dataclass
class Result:
    """How a deployment ended.

    Attributes:
        says: "deployed", "deployed already", or the error.
        image: The image of the job in the end.
        label: The label of the deployed bundle in the end.
        builds: How many builds were requested.
    """

    says: str
    image: str | None
    label: str | None
    builds: int


def deploy(google: Google, cloud: Cloud, bundle: Bundle) -> Result:
    """Deploy the bundle to nprod."""
    google.hosts = {**cloud.hosts(), "oauth2.googleapis.com": google.issue_token}
    api = GoogleApi(find_credentials(), backoff=0.002)
    try:
        is_new = deployment.job.update_job(api, find_environment("nprod"), bundle, WAITS)
        says = "deployed" if is_new else "deployed already"
    except DeploymentError as failure:
        says = str(failure)
    finally:
        api.close()
    builds = len(cloud.image_builds())
    if not cloud.jobs:
        return Result(says, None, None, builds)
    job = cloud.jobs["my-data-platform"]
    image = job["template"]["template"]["containers"][0]["image"]
    return Result(says, image, job["labels"].get("bundle"), builds)


def running(label: str, state: str = "CONDITION_SUCCEEDED") -> Cloud:
    """A project whose job runs a bundle."""
    job: dict[str, Any] = first_job()
    job["labels"]["bundle"] = label
    job["terminalCondition"]["state"] = state
    return Cloud(jobs={"my-data-platform": job})


def with_faults(*faults: Fault) -> Cloud:
    """A project where some requests meet faults."""
    return Cloud(faults=list(faults))


# What Google does in a deployment. test_job_deployment.py says how it must end.
SCENARIOS: dict[str, Callable[[], Cloud]] = {
    "the job gets the image": Cloud,
    "the build is over at once": lambda: Cloud(job_rollout=JobRollout(building=0, reconciling=0)),
    "the job is shown as it was before": lambda: Cloud(job_rollout=JobRollout(lag=3)),
    "another bundle is shown before": lambda: replace(
        running("b" * 63), job_rollout=JobRollout(lag=3)
    ),
    "the bundle is deployed already": lambda: running(NEW[:63]),
    "the bundle is deployed already, but failed": lambda: running(NEW[:63], "CONDITION_FAILED"),
    "another bundle is deployed": lambda: running("b" * 63),
    "the build fails": lambda: Cloud(job_rollout=JobRollout(ends="FAILURE")),
    "the build times out": lambda: Cloud(job_rollout=JobRollout(ends="TIMEOUT")),
    "the build never ends": lambda: Cloud(job_rollout=JobRollout(building=10_000)),
    "the job cannot run": lambda: Cloud(
        job_rollout=JobRollout(problem="Image 'europe-west4-docker.pkg.dev/a' not found.")
    ),
    "the update never ends": lambda: Cloud(job_rollout=JobRollout(reconciling=10_000)),
    "another deployment wins": lambda: Cloud(job_rollout=JobRollout(replaced_by="b" * 63)),
    "the job was changed meanwhile": lambda: with_faults(Fault(UPDATE, error(409, "Conflict."))),
    "the update gets no response, and is done": lambda: with_faults(
        Fault(UPDATE, DROPPED, is_done=True)
    ),
    "looks at the build get 503": lambda: with_faults(Fault(LOOK_AT_BUILD, UNAVAILABLE, times=9)),
    "a look gets 503": lambda: with_faults(Fault(LOOK, UNAVAILABLE)),
    "the build gets 503": lambda: with_faults(Fault(BUILD, UNAVAILABLE)),
    "the build is not allowed": lambda: with_faults(
        Fault(BUILD, error(403, "The caller does not have permission"), times=9)
    ),
    "the project may not build in the region": lambda: with_faults(
        Fault(BUILD, error(400, "due to quota restrictions, cannot run builds in this region"))
    ),
    "the job does not exist": lambda: Cloud(jobs={}),
    "Google is out of order": lambda: with_faults(Fault(LOOK, UNAVAILABLE, times=99)),
}


def main() -> None:
    """Run the deployments, and print their results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = Bundle(TASKS, folder / "bundle.zip", NEW)
        bundle.path.write_bytes(b"new")
        (folder / "key.json").write_text(json.dumps(service_account_key()))
        with google_stand_ins(folder, *HOSTS) as google:
            os.environ |= google.settings
            os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(folder / "key.json")
            results = {
                name: asdict(deploy(google, make(), bundle)) for name, make in SCENARIOS.items()
            }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
