"""Deploys Dagster to the VM of an environment: `just deploy-dagster ENVIRONMENT`.

It builds the image of Dagster, unless it exists, and names it in the VM's metadata. The VM follows
the change: infra/vm/rollout.sh runs there. It reports its state as a guest attribute, with the
image and the revision of its settings. `just deploy` and CI run this, with the roles of the
deployer. At an older commit, it rolls back.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

from deployment.advice import explained
from deployment.answers import NAME_VARIABLE
from deployment.deployer import deployer_api, run_deployment
from deployment.environments import Environment
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, GoogleError
from deployment.orchestrator import orchestrator_image

_API = "https://compute.googleapis.com/compute/v1"
_IMAGE = "dagster-image"  # the names in the metadata
_REVISION = "dagster-revision"  # of the settings, which Terraform sets
_STOPPED = ("STOPPING", "TERMINATED", "SUSPENDING", "SUSPENDED")


@dataclass(frozen=True)
class Waits:
    """How long a deployment waits, in seconds.

    Attributes:
        interval: Between two requests for the state of the VM.
        rollout: Until the VM runs the image. It takes about two minutes, and five on a new VM.
    """

    interval: float = 5.0
    rollout: float = 15 * 60.0


_WAITS = Waits()


def deploy_dagster(environment: Environment) -> None:
    """Build the image, let the VM run it, and wait until it does.

    Args:
        environment: The environment. Its VM must exist.

    Raises:
        DeploymentError: The VM does not run the image.
    """
    with deployer_api() as api:
        image = orchestrator_image(api, environment)
        is_new = roll_out(api, environment, image)
        now = "runs" if is_new else "already runs"
        print(f"{_name(environment)} in {environment.name} {now} {image}", flush=True)


def roll_out(api: GoogleApi, environment: Environment, image: str, waits: Waits = _WAITS) -> bool:
    """Let the VM run an image, and wait until it does.

    Args:
        api: Sends the requests, with the credentials of the deployer or of a user with its roles.
        environment: The environment. Its VM must exist.
        image: The address of the image, with its digest.
        waits: How long to wait.

    Returns:
        True if the VM was updated; False if it already runs the image.

    Raises:
        DeploymentError: The VM does not run the image.
    """
    try:
        url = _url(environment)
        metadata = api.request("GET", url)["metadata"]
        before = _items(metadata).get(_IMAGE)
        if before == image and _state(api, url) == ("running", *_wanted(metadata)):
            return False
        if before != image:
            _set_image(api, url, metadata, image)
        _wait(api, environment, image, before, waits)
    except GoogleError as error:
        raise explained(error, "VM", environment) from error
    return True


def _name(environment: Environment) -> str:
    return f"{environment[NAME_VARIABLE]}-dagster"


def _url(environment: Environment) -> str:
    zone = environment.variables.get("vm_zone") or f"{environment['region']}-b"
    project = environment["project_id"]
    return f"{_API}/projects/{project}/zones/{zone}/instances/{_name(environment)}"


def _items(metadata: dict[str, Any]) -> dict[str, str]:
    return {item["key"]: item["value"] for item in metadata.get("items", ())}


def _wanted(metadata: dict[str, Any]) -> tuple[str, str]:
    """What the VM should run: the image and the revision that the metadata names."""
    items = _items(metadata)
    return items.get(_IMAGE, ""), items.get(_REVISION, "")


def _set_image(api: GoogleApi, url: str, metadata: dict[str, Any], image: str) -> None:
    """Set the image. The fingerprint makes Google reject that if the metadata was changed."""
    items = [item for item in metadata.get("items", ()) if item["key"] != _IMAGE]
    changed = {
        "fingerprint": metadata["fingerprint"],
        "items": [*items, {"key": _IMAGE, "value": image}],
    }
    try:
        api.request("POST", f"{url}/setMetadata", json=changed)
    except GoogleError as error:
        if error.status != 412:
            raise
        if not error.was_retried:  # otherwise, a request without a response may have set it
            raise DeploymentError(
                "Another deployment has changed the VM's metadata. Deploy again."
            ) from error


def _state(api: GoogleApi, url: str) -> tuple[str, str, str]:
    """What the VM reports: its state, the image, and the revision of its settings."""
    attribute = {"queryPath": "dagster/state"}
    try:
        found = api.request("GET", f"{url}/getGuestAttributes", params=attribute)
    except GoogleError as error:
        if error.status == 404:  # the VM has not reported anything since it started
            return "", "", ""
        raise
    state, image, revision = found["queryValue"]["items"][0]["value"].split(" ")
    return state, image, revision


def _wait(
    api: GoogleApi, environment: Environment, image: str, before: str | None, waits: Waits
) -> None:
    """Wait until the VM runs the image. The deployer may look at the VM, not at operations.

    Raises:
        DeploymentError: It does not.
    """
    deadline = time.monotonic() + waits.rollout
    while time.monotonic() < deadline:
        try:
            if _runs(api, environment, image, before):
                return
        except GoogleError as error:
            if not error.is_transient:
                raise
        time.sleep(waits.interval)
    raise DeploymentError(
        f"The VM has not run the image within {waits.rollout / 60:.0f} minutes. "
        f"{_advice(environment)}"
    )


def _runs(api: GoogleApi, environment: Environment, image: str, before: str | None) -> bool:
    """Whether the VM runs the image, with the settings that the metadata has.

    Raises:
        DeploymentError: It never will.
    """
    url = _url(environment)
    vm = api.request("GET", url)
    if _items(vm["metadata"]).get(_IMAGE) not in (image, before):
        raise DeploymentError(
            "Another deployment has replaced this one. Deploy again, when no other one is running."
        )
    if vm["status"] in _STOPPED:
        raise DeploymentError(
            f"The VM {_name(environment)} is stopped. Start it (gcloud compute instances start "
            f"{_name(environment)}), then deploy again."
        )
    state, *reported = _state(api, url)
    if reported != [image, _wanted(vm["metadata"])[1]]:
        return False
    if state == "failed":
        raise DeploymentError(f"Dagster does not run on the VM. {_advice(environment)}")
    return state == "running"


def _advice(environment: Environment) -> str:
    return (
        "See what the VM has printed, as infra/README.md describes. To go back, check out the "
        f"older commit and run `uv run just deploy-dagster {environment.name}`."
    )


if __name__ == "__main__":
    sys.exit(run_deployment(deploy_dagster))
