"""Deployments against a Google Cloud that misbehaves: runs in the environment of a project.

    python deployments.py scenarios|random

The waits are parts of the real ones, and longer than some requests on a slow machine. Prints a JSON
object with the result of each.
"""

import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import deployment.update
from deployment.bundle import Bundle
from deployment.environments import find_environment
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, find_credentials
from deployment.project import TASKS
from google_cloud import DROPPED, HOSTS, Cloud, Fault, Function, Rollout, error
from google_stand_ins import Google, Response, google_stand_ins, service_account_key

NEW = hashlib.sha256(b"new").hexdigest()
DEPLOYMENTS = 300
WAITS = deployment.update.Waits(interval=0.005, start=1.0, same_build=3.0, longest=10.0)

UPDATE = r"PATCH cloudfunctions.*"
LOOK = r"GET cloudfunctions.*/functions/"
UPLOAD = r"POST storage.*"
OPERATION = r"GET cloudfunctions.*/operations/"
TOKEN = r"POST oauth2.*"


@dataclass
class Result:
    """How a deployment ended.

    Attributes:
        says: "deployed", "deployed already", or the error.
        serves: The source that the function serves in the end.
        served_before: The source that it served before.
        updates: How many updates of the function were requested.
        label: The label of the deployed bundle in the end.
    """

    says: str
    serves: str | None
    served_before: str | None
    updates: int
    label: str | None


def deploy(google: Google, cloud: Cloud, bundle: Bundle) -> Result:
    """Deploy the bundle to nprod, and let the update end."""
    google.hosts = {
        **cloud.hosts(),
        "oauth2.googleapis.com": lambda request: (
            cloud.faulted(request) or google.issue_token(request)
        ),
    }
    function = cloud.functions.get("my-data-platform")
    served_before = function.serves if function else None
    api = GoogleApi(find_credentials(), backoff=0.002)
    try:
        is_new = deployment.update.update_function(api, find_environment("nprod"), bundle, WAITS)
        says = "deployed" if is_new else "deployed already"
    except DeploymentError as failure:
        says = str(failure)
    finally:
        api.close()
    cloud.settle()
    serves = function.serves if function else None
    label = function.shown["labels"].get("bundle") if function else None
    return Result(says, serves, served_before, len(cloud.updates()), label)


def broken(state: str, *problems: str) -> Cloud:
    """A project whose function does not serve requests, or whose last deployment failed."""
    function = Function(serves=None if state != "ACTIVE" else "old.zip")
    function.show(state, *problems)
    return Cloud(functions={"my-data-platform": function})


def serving_new(*problems: str) -> Cloud:
    """A project whose function serves the bundle."""
    function = Function(serves=f"{NEW}.zip")
    function.shown["labels"]["bundle"] = NEW[:63]
    function.show("ACTIVE", *problems)
    return Cloud(functions={"my-data-platform": function}, objects={f"{NEW}.zip": b"new"})


def serving_other() -> Cloud:
    """A project whose function serves another bundle."""
    function = Function()
    function.shown["labels"]["bundle"] = "c" * 63
    return Cloud(functions={"my-data-platform": function})


def with_faults(*faults: Fault, **more: object) -> Cloud:
    """A project where some requests meet faults."""
    return Cloud(faults=list(faults), **more)  # type: ignore[arg-type]


UNAVAILABLE = error(503, "The service is currently unavailable.")
REPLACES = "x@y does not have storage.objects.delete access to the Google Cloud Storage object."
MAY_NOT_CREATE = "x@y does not have storage.objects.create access to the Google Cloud Storage"

# What Google does in a deployment. test_deployment.py says how it must end.
SCENARIOS: dict[str, Callable[[], Cloud]] = {
    "the new code is served": Cloud,
    "the new code is served at the first look": lambda: Cloud(rollout=Rollout(deploying=0)),
    "the function was FAILED, and still is at first": lambda: replace(
        broken("FAILED", "No port."), rollout=Rollout(lag=3)
    ),
    "the function was UNKNOWN, and still is at first": lambda: replace(
        broken("UNKNOWN"), rollout=Rollout(lag=3)
    ),
    "old errors are shown at first": lambda: replace(
        broken("ACTIVE", "Old."), rollout=Rollout(lag=3)
    ),
    "old errors are shown while it is deployed": lambda: replace(
        broken("ACTIVE", "Old."), rollout=Rollout(deploying=4)
    ),
    "old errors are shown with a new time": lambda: replace(
        broken("ACTIVE", "Old."), rollout=Rollout(lag=3, touches_at_once=True)
    ),
    "the function is FAILED, and nothing happens": lambda: replace(
        broken("FAILED", "No port."), rollout=Rollout(lag=10_000)
    ),
    "the function shows old errors, and nothing happens": lambda: replace(
        broken("ACTIVE", "Old."), rollout=Rollout(lag=10_000)
    ),
    "the build fails": lambda: Cloud(rollout=Rollout(ends="not built")),
    "the build fails at once": lambda: Cloud(
        rollout=Rollout(ends="not built", deploying=0, lag=2, touches_at_once=True)
    ),
    "the new code does not start": lambda: Cloud(rollout=Rollout(ends="not started")),
    "the bundle is deployed already": serving_new,
    "the bundle is deployed already, but failed": lambda: serving_new("Build failed."),
    "the same code has the same build": lambda: Cloud(rollout=Rollout(has_new_build=False)),
    "the same build is served at the first look": lambda: Cloud(
        rollout=Rollout(has_new_build=False, deploying=0)
    ),
    "other code has no new build": lambda: replace(
        serving_other(), rollout=Rollout(has_new_build=False)
    ),
    "the update gets 503 four times": lambda: with_faults(Fault(UPDATE, UNAVAILABLE, times=4)),
    "a proxy responds with a page": lambda: with_faults(Fault(LOOK, Response(200, b"<html>"))),
    "the deployment never ends": lambda: Cloud(rollout=Rollout(deploying=10_000)),
    "the update gets 503": lambda: with_faults(Fault(UPDATE, UNAVAILABLE)),
    "the update gets 503, and has started": lambda: with_faults(
        Fault(UPDATE, UNAVAILABLE, is_done=True)
    ),
    "the update gets no response, and has started": lambda: with_faults(
        Fault(UPDATE, DROPPED, is_done=True)
    ),
    "the update gets 429": lambda: with_faults(Fault(UPDATE, error(429, "Quota."), times=3)),
    "another deployment is running": lambda: with_faults(
        Fault(UPDATE, error(409, "unable to queue the operation"))
    ),
    "another deployment is running after 429": lambda: with_faults(
        Fault(UPDATE, error(429, "Quota.")),
        Fault(UPDATE, error(409, "unable to queue the operation")),
    ),
    "another deployment wins": lambda: Cloud(rollout=Rollout(replaced_by="b" * 63)),
    "the operation can be read": lambda: Cloud(operations_are_readable=True),
    "the operation can be read, and fails": lambda: Cloud(
        operations_are_readable=True, rollout=Rollout(ends="not built")
    ),
    "the operation can be read, and the function was FAILED": lambda: replace(
        broken("FAILED"), rollout=Rollout(lag=3), operations_are_readable=True
    ),
    "a look gets 503 three times": lambda: with_faults(Fault(LOOK, UNAVAILABLE, times=3)),
    "looks get 503 while it is deployed": lambda: with_faults(
        Fault(OPERATION, UNAVAILABLE, times=9), operations_are_readable=True
    ),
    "the upload gets 503": lambda: with_faults(Fault(UPLOAD, UNAVAILABLE)),
    "the upload gets no response, and is stored": lambda: with_faults(
        Fault(UPLOAD, DROPPED, is_done=True)
    ),
    "the bundle is stored already": lambda: Cloud(objects={f"{NEW}.zip": b"new"}),
    "the bundle is stored already, and Google says 403": lambda: with_faults(
        Fault(UPLOAD, error(403, REPLACES)), objects={f"{NEW}.zip": b"new"}
    ),
    "the upload is not allowed": lambda: with_faults(
        Fault(UPLOAD, error(403, MAY_NOT_CREATE), times=99)
    ),
    "the deployer has no role yet": lambda: with_faults(
        Fault(LOOK, error(403, "Permission 'cloudfunctions.functions.get' denied"))
    ),
    "the update is not allowed": lambda: with_faults(
        Fault(UPDATE, error(403, "Permission 'cloudfunctions.functions.update' denied"))
    ),
    "the function does not exist": lambda: Cloud(functions={}),
    "Google is out of order": lambda: with_faults(Fault(LOOK, UNAVAILABLE, times=99)),
    "no token is issued": lambda: with_faults(
        Fault(TOKEN, Response(400, {"error": "invalid_grant"}), times=99)
    ),
}


def random_cloud(seed: int) -> Cloud:
    """A project with a random deployment, and with at most three transient faults."""
    rng = random.Random(seed)
    projects: list[Callable[[], Cloud]] = [
        Cloud,
        lambda: broken("FAILED", "No port."),
        lambda: broken("ACTIVE", "Old."),
        serving_new,
    ]
    cloud = rng.choice(projects)()
    cloud.operations_are_readable = rng.random() < 0.3
    cloud.rollout = Rollout(
        ends=rng.choices(["served", "not built", "not started"], [8, 1, 1])[0],  # type: ignore[arg-type]
        lag=rng.randrange(4),
        deploying=rng.randrange(4),
        touches_at_once=rng.random() < 0.2,
        has_new_build=rng.random() < 0.8,
    )
    for _ in range(rng.randrange(4)):
        status = rng.choice([0, 429, 500, 502, 503, 504])
        cloud.faults.append(
            Fault(
                rng.choice([UPDATE, LOOK, UPLOAD, OPERATION]),
                error(status, "For a moment.") if status else DROPPED,
                is_done=rng.random() < 0.4 and status != 429,
            )
        )
    return cloud


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
            if sys.argv[1] == "scenarios":
                clouds = {name: make() for name, make in SCENARIOS.items()}
            else:
                clouds = {str(seed): random_cloud(seed) for seed in range(DEPLOYMENTS)}
            results = {
                name: asdict(deploy(google, cloud, bundle)) for name, cloud in clouds.items()
            }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
