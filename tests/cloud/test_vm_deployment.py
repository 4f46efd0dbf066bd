"""A deployment lets the VM run Dagster's image, or says why it does not."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Render, end, run, run_with_google
from google_cloud import Cloud, JobRollout
from google_stand_ins import Google, google_for_a_person

DEPLOYMENTS = Path(__file__).with_name("vm_deployments.py")
NEW, OLD, OTHER = "images/orchestrator@1", "images/orchestrator@0", "images/orchestrator@2"


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project with a VM."""
    project = render({"orchestrator": "vm"})
    run("uv", "run", "just", cwd=project)
    run("uv", "lock", cwd=project / "orchestrator")
    return project


@pytest.fixture(scope="module")
def results(project: Path) -> Mapping[str, Any]:
    """How the roll-outs in vm_deployments.py ended."""
    printed = run_with_google(project, "python", str(DEPLOYMENTS))
    results: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return results


def test_the_types_of_the_roll_outs_are_right(project: Path) -> None:
    run_with_google(project, "mypy", str(DEPLOYMENTS))


EXPECTED = {
    "the VM runs the image": ("deployed", NEW),
    "the VM is new": ("deployed", NEW),
    "the metadata is shown as it was before": ("deployed", NEW),
    "the VM runs the image already": ("deployed already", NEW),
    "the VM is still starting the image": ("deployed", NEW),
    "the settings have changed": ("deployed$", NEW),
    "the settings that failed have changed": ("deployed$", NEW),
    "the changed settings do not run": ("Dagster does not run on the VM. See what the VM", NEW),
    "Dagster does not run": (
        "Dagster does not run on the VM. See what the VM has printed, .* check out the older "
        "commit and run `uv run just deploy-dagster nprod`.",
        NEW,
    ),
    "the VM never reports": ("The VM has not run the image within 0 minutes. See what the VM", NEW),
    "the VM is stopped": ("The VM my-data-platform-dagster is stopped. Start it", NEW),
    "another deployment wins": ("Another deployment has replaced this one. Deploy again", OTHER),
    "the metadata was changed meanwhile": (
        "Another deployment has changed the VM's metadata. Deploy again.",
        OLD,
    ),
    "the update gets no response, and is done": ("deployed", NEW),
    "a look gets 503": ("deployed", NEW),
    "looks get 503 for a while": ("deployed", NEW),
    "the deployer lacks a role": (
        "Required 'compute.instances.setMetadata' permission for the VM. The VM or its bucket for "
        "sources does not exist, or the deployer lacks a role. Run `uv run just deploy nprod`.",
        OLD,
    ),
    "the VM does not exist": ("The resource 'instances/my-.*' was not found. The VM or", None),
    "Google is out of order": ("The service is currently unavailable. Deploy again.", OLD),
}


def test_each_scenario_is_tested(results: Mapping[str, Any]) -> None:
    assert results.keys() == EXPECTED.keys()


@pytest.mark.parametrize("scenario", EXPECTED)
def test_a_roll_out_ends_well_or_says_what_to_do(scenario: str, results: Mapping[str, Any]) -> None:
    says, image = EXPECTED[scenario]
    result = results[scenario]

    assert re.match(says, result["says"]), result["says"]
    assert result["image"] == image
    assert result["other"].keys() == {"user-data", "dagster-revision"}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud(job_rollout=JobRollout(building=0))


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Stand-ins for Google's servers."""
    with google_for_a_person(tmp_path, cloud.hosts()) as google:
        yield google


RECIPE = ("uv", "run", "just", "deploy-dagster", "nprod")


def test_the_image_is_built_and_set(project: Path, google: Google, cloud: Cloud) -> None:
    status, printed = end(*RECIPE, cwd=project, env=google.settings, timeout=120)

    assert status == 0, printed
    [vm] = cloud.vms.values()
    assert vm.image == (
        f"europe-west4-docker.pkg.dev/my-gcp-project/my-data-platform/orchestrator@sha256:{0:064}"
    )
    assert f"my-data-platform-dagster in nprod runs {vm.image}" in printed


def test_a_failed_build_leaves_the_vm_as_it_is(project: Path, google: Google, cloud: Cloud) -> None:
    cloud.job_rollout = JobRollout(building=0, ends="FAILURE")
    status, printed = end(*RECIPE, cwd=project, env=google.settings, timeout=120)

    assert status == 1
    assert "Not deployed: The build of the image ended with FAILURE." in printed
    [vm] = cloud.vms.values()
    assert vm.image is None
