"""Roll-outs of Dagster on a VM in a Google Cloud that misbehaves: runs in a project's environment.

    python vm_deployments.py

The waits are parts of the real ones. Prints a JSON object with the result of each.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import deployment.vm
from deployment.environments import find_environment
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, find_credentials
from google_cloud import DROPPED, HOSTS, Cloud, Fault, Vm, error
from google_stand_ins import Google, google_stand_ins, service_account_key

NAME = "my-data-platform-dagster"
NEW, OLD, OTHER = "images/orchestrator@1", "images/orchestrator@0", "images/orchestrator@2"
CHANGED = {"user-data": "#cloud-config", "dagster-revision": "r2"}  # by Terraform
WAITS = deployment.vm.Waits(interval=0.005, rollout=5.0)

LOOK = r"GET compute.*"
UPDATE = r"POST compute.*"
UNAVAILABLE = error(503, "The service is currently unavailable.")
DENIED = error(403, "Required 'compute.instances.setMetadata' permission for the VM")


@dataclass
class Result:
    """How a roll-out ended.

    Attributes:
        says: "deployed", "deployed already", or the error.
        image: The image that the metadata names in the end.
        other: The other metadata in the end.
    """

    says: str
    image: str | None
    other: dict[str, str]


def deploy(google: Google, cloud: Cloud) -> Result:
    """Deploy the new image to nprod."""
    google.hosts = {**cloud.hosts(), "oauth2.googleapis.com": google.issue_token}
    api = GoogleApi(find_credentials(), backoff=0.002)
    try:
        is_new = deployment.vm.roll_out(api, find_environment("nprod"), NEW, WAITS)
        says = "deployed" if is_new else "deployed already"
    except DeploymentError as failure:
        says = str(failure)
    finally:
        api.close()
    vm = cloud.vms.get(NAME, Vm())
    return Result(says, vm.image, vm.items)


def cloud(*faults: Fault, vm: Vm | None = None) -> Cloud:
    """A project whose VM runs an older image, where some requests meet faults."""
    older = Vm(image=OLD, reports=f"running {OLD}")
    return Cloud(vms={NAME: vm or older}, faults=list(faults))


# What Google and the VM do. test_vm_deployment.py says how a roll-out must end.
SCENARIOS: dict[str, Callable[[], Cloud]] = {
    "the VM runs the image": cloud,
    "the VM is new": lambda: cloud(vm=Vm(starting=5)),
    "the metadata is shown as it was before": lambda: cloud(
        vm=Vm(image=OLD, reports=f"running {OLD}", lag=3)
    ),
    "the VM runs the image already": lambda: cloud(vm=Vm(image=NEW, reports=f"running {NEW}")),
    "the VM is still starting the image": lambda: cloud(
        vm=Vm(image=NEW, reports=f"starting {NEW}")
    ),
    "the settings have changed": lambda: cloud(
        vm=Vm(image=NEW, reports=f"running {NEW}", items=CHANGED)
    ),
    "the settings that failed have changed": lambda: cloud(
        vm=Vm(image=NEW, reports=f"failed {NEW}", items=CHANGED)
    ),
    "the changed settings do not run": lambda: cloud(
        vm=Vm(image=NEW, reports=f"running {NEW}", items=CHANGED, ends="failed")
    ),
    "Dagster does not run": lambda: cloud(vm=Vm(image=OLD, ends="failed")),
    "the VM never reports": lambda: cloud(vm=Vm(starting=10_000)),
    "the VM is stopped": lambda: cloud(vm=Vm(status="TERMINATED")),
    "another deployment wins": lambda: cloud(vm=Vm(image=OLD, replaced_by=OTHER)),
    "the metadata was changed meanwhile": lambda: cloud(
        Fault(UPDATE, error(412, "Supplied fingerprint does not match."))
    ),
    "the update gets no response, and is done": lambda: cloud(Fault(UPDATE, DROPPED, is_done=True)),
    "a look gets 503": lambda: cloud(Fault(LOOK, UNAVAILABLE)),
    "looks get 503 for a while": lambda: cloud(
        Fault(r"GET compute.*getGuestAttributes.*", UNAVAILABLE, times=12)
    ),
    "the deployer lacks a role": lambda: cloud(Fault(UPDATE, DENIED)),
    "the VM does not exist": lambda: Cloud(vms={}),
    "Google is out of order": lambda: cloud(Fault(LOOK, UNAVAILABLE, times=99)),
}


def main() -> None:
    """Run the roll-outs, and print their results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key.json").write_text(json.dumps(service_account_key()))
        with google_stand_ins(folder, *HOSTS) as google:
            os.environ |= google.settings
            os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(folder / "key.json")
            results = {name: asdict(deploy(google, make())) for name, make in SCENARIOS.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
