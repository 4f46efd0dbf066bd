"""A deployment builds the image of Dagster, once for the same sources, or says why it cannot."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Render, end, run
from google_cloud import Cloud, Fault, JobRollout, error
from google_stand_ins import Google, Request, Response, google_for_a_person

IMAGE = "europe-west4-docker.pkg.dev/my-gcp-project/my-data-platform/orchestrator"
RECIPE = ("uv", "run", "just", "push-image", "nprod")


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project with a lock file for Dagster."""
    project = render()
    run("uv", "run", "just", cwd=project)
    run("uv", "lock", cwd=project / "orchestrator")
    return project


@pytest.fixture
def cloud() -> Cloud:
    return Cloud(job_rollout=JobRollout(building=0))


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Stand-ins for Google's servers."""
    with google_for_a_person(tmp_path, cloud.hosts()) as google:
        yield google


def test_the_same_sources_are_built_once(project: Path, google: Google, cloud: Cloud) -> None:
    first, again = (end(*RECIPE, cwd=project, env=google.settings, timeout=120) for _ in range(2))

    assert first == again
    status, printed = first
    assert status == 0, printed
    assert printed.splitlines()[-1] == f"{IMAGE}@sha256:{0:064}"
    [(name, content)] = cloud.objects.items()
    [build] = cloud.image_builds()
    assert build.body["images"] == [f"{IMAGE}:{hashlib.sha256(content).hexdigest()}"]
    assert build.body["source"]["storageSource"]["object"] == name
    assert build.body["serviceAccount"].endswith(
        "/my-data-platform-build@my-gcp-project.iam.gserviceaccount.com"
    )


def test_an_image_that_cannot_be_built_is_an_error(
    project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.job_rollout = JobRollout(building=0, ends="FAILURE")

    status, printed = end(*RECIPE, cwd=project, env=google.settings, timeout=120)

    assert status == 1
    assert "Not deployed: The build of the image ended with FAILURE. The command pip" in printed
    assert "What is deployed keeps the image that it has." in printed


def test_a_bundle_that_is_built_again_meanwhile_is_an_error(
    project: Path, google: Google, cloud: Cloud
) -> None:
    def build_again(request: Request) -> Response:
        (project / "build" / "orchestrator.zip").write_bytes(b"other sources")
        return cloud.serve(request)

    google.hosts["artifactregistry.googleapis.com"] = build_again

    status, printed = end(*RECIPE, cwd=project, env=google.settings, timeout=120)

    assert status == 1
    assert "Another recipe has built the bundle of orchestrator/ again" in printed
    assert cloud.objects == {}


def test_a_missing_role_is_an_error(project: Path, google: Google, cloud: Cloud) -> None:
    denied = error(403, "Permission 'artifactregistry.tags.get' denied.")
    cloud.faults = [Fault(r"GET artifactregistry.*", denied, times=9)]

    status, printed = end(*RECIPE, cwd=project, env=google.settings, timeout=120)

    assert status == 1
    assert re.search(
        r"Not deployed: Permission 'artifactregistry.tags.get' denied. The repository of images or "
        r"its bucket for sources does not exist, or the deployer lacks a role. Run `uv run just "
        r"deploy nprod`.",
        printed,
    )
    assert cloud.image_builds() == []


def test_ci_builds_nothing_before_it_may_deploy(project: Path, google: Google) -> None:
    settings = {**google.settings, "CI": "true"}

    status, printed = end(*RECIPE, cwd=project, env=settings, timeout=120)

    assert status == 0
    assert "Skipped: CI cannot deploy to nprod" in printed
