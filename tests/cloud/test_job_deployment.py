"""A deployment builds the image of a job and sets it, or the job keeps the one that it has."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from conftest import FUNCTIONS_AND_JOBS, Render, end, moved, run, run_with_google
from google_cloud import Cloud
from google_stand_ins import Google, google_for_a_person

DEPLOYMENTS = Path(__file__).with_name("job_deployments.py")
IMAGE = "europe-west4-docker.pkg.dev/my-gcp-project/my-data-platform/cloud_function-job"
FIRST = "us-docker.pkg.dev/cloudrun/container/job:latest"
NEW, OLD = hashlib.sha256(b"new").hexdigest()[:63], "b" * 63
DEPLOYED = f"{IMAGE}@sha256:{0:064}"


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project with a job."""
    project = render(FUNCTIONS_AND_JOBS)
    run("uv", "run", "just", cwd=project)
    run("uv", "lock", cwd=project / "cloud_function")
    return project


@pytest.fixture(scope="module")
def results(project: Path) -> Mapping[str, Any]:
    """How the deployments in job_deployments.py ended."""
    printed = run_with_google(project, "python", str(DEPLOYMENTS))
    results: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return results


def test_the_types_of_the_deployments_are_right(project: Path) -> None:
    run_with_google(project, "mypy", str(DEPLOYMENTS))


EXPECTED = {
    "the job gets the image": ("deployed", DEPLOYED, NEW, 1),
    "the build is over at once": ("deployed", DEPLOYED, NEW, 1),
    "the job is shown as it was before": ("deployed", DEPLOYED, NEW, 1),
    "another bundle is shown before": ("deployed", DEPLOYED, NEW, 1),
    "the bundle is deployed already": ("deployed already", FIRST, NEW, 0),
    "the bundle is deployed already, but failed": ("deployed", DEPLOYED, NEW, 1),
    "another bundle is deployed": ("deployed", DEPLOYED, NEW, 1),
    "the build fails": (
        "The build of the image ended with FAILURE. The command pip returned a non-zero code: 1. "
        "See its log: https://.*/build-0. What is deployed keeps the image that it has.",
        *(FIRST, None, 1),
    ),
    "the build times out": ("The build of the image ended with TIMEOUT.", FIRST, None, 1),
    "the build never ends": ("The build of the image did not end within 0 min", FIRST, None, 1),
    "the job cannot run": (
        "The job cannot run: Image 'europe-west4-docker.pkg.dev/a' not found.",
        *(DEPLOYED, NEW, 1),
    ),
    "the update never ends": ("The job was not updated within 0 minutes", DEPLOYED, NEW, 1),
    "another deployment wins": ("Another deployment has replaced this one.", DEPLOYED, OLD, 1),
    "the job was changed meanwhile": (
        "Another deployment has changed the job. Deploy again.",
        *(FIRST, None, 1),
    ),
    "the update gets no response, and is done": ("deployed", DEPLOYED, NEW, 1),
    "looks at the build get 503": ("deployed", DEPLOYED, NEW, 1),
    "a look gets 503": ("deployed", DEPLOYED, NEW, 1),
    "the build gets 503": ("deployed", DEPLOYED, NEW, 2),
    "the build is not allowed": (
        "The caller does not have permission. The job or its bucket for sources does not exist, "
        "or the deployer lacks a role. Run `uv run just deploy nprod`.",
        *(FIRST, None, 1),
    ),
    "the project may not build in the region": (
        ".* cannot run builds in this region Set `build_region` in infra/environments",
        *(FIRST, None, 1),
    ),
    "the job does not exist": ("Resource .* does not exist. The job or its bucket", None, None, 0),
    "Google is out of order": ("The service is currently unavailable.", FIRST, None, 0),
}


def test_each_scenario_is_tested(results: Mapping[str, Any]) -> None:
    assert results.keys() == EXPECTED.keys()


@pytest.mark.parametrize("scenario", EXPECTED)
def test_a_deployment_of_a_job_ends_well_or_says_what_to_do(
    scenario: str, results: Mapping[str, Any]
) -> None:
    says, image, label, builds = EXPECTED[scenario]
    result = results[scenario]

    assert re.match(says, result["says"]), result["says"]
    assert (result["image"], result["label"], result["builds"]) == (image, label, builds)


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Stand-ins for Google's servers."""
    with google_for_a_person(tmp_path, cloud.hosts()) as google:
        yield google


def test_the_image_is_built_from_the_bundle_and_nothing_else_is_changed(
    project: Path, google: Google, cloud: Cloud
) -> None:
    recipe = ("uv", "run", "just", "deploy-job", "nprod")
    status, printed = end(*recipe, cwd=project, env=google.settings, timeout=120)

    assert status == 0, printed
    [(name, content)] = cloud.objects.items()
    digest = hashlib.sha256(content).hexdigest()
    assert f"my-data-platform in nprod runs {digest}" in printed
    [build] = cloud.image_builds()
    assert build.body["source"] == {
        "storageSource": {"bucket": "my-gcp-project-function-sources", "object": name}
    }
    assert build.body["images"] == [f"{IMAGE}:{digest}"]
    assert build.body["serviceAccount"] == (
        "projects/my-gcp-project/serviceAccounts/"
        "my-data-platform-build@my-gcp-project.iam.gserviceaccount.com"
    )
    job = cloud.jobs["my-data-platform"]
    assert job["labels"] == {"team": "data", "bundle": digest[:63]}
    [container] = job["template"]["template"]["containers"]
    assert container == {
        "image": DEPLOYED,
        "env": [{"name": "MESSAGES_BUCKET", "value": "my-gcp-project-pipes-messages"}],
    }
    with ZipFile(project / "build" / "cloud_function.zip") as archive:
        assert {"Dockerfile", "job.py", "requirements.txt"} <= set(archive.namelist())


def test_a_deployment_reports_that_it_replaces_other_code_of_a_function_and_of_a_job(
    project: Path, google: Google, cloud: Cloud, tmp_path: Path
) -> None:
    (tmp_path / "terraform").write_text("#!/bin/sh\n")
    (tmp_path / "terraform").chmod(0o755)
    cloud.functions["my-data-platform"].shown["labels"]["bundle"] = "e" * 63
    cloud.jobs["my-data-platform"]["labels"]["bundle"] = "f" * 63

    recipe = ("uv", "run", "python", "-m", "deployment.recipes", "deploy", "nprod")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    status, printed = end(*recipe, cwd=project, env=google.settings | path, timeout=60)

    assert status == 0, printed
    function, job = (line for line in printed.splitlines() if "other code" in line)
    assert function.startswith("my-data-platform in nprod serves other code (eeeeeeeeeeee) than")
    assert function.endswith("Answer `yes` to replace it.")
    assert job.startswith("my-data-platform in nprod runs other code (ffffffffffff) than")
    assert job.endswith("this deployment replaces it without a question. Ctrl-C stops.")


def test_a_job_that_is_not_there_is_an_error(project: Path, google: Google) -> None:
    recipe = ("uv", "run", "just", "deploy-job", "nprod", "reports")
    status, printed = end(*recipe, cwd=project, env=google.settings)

    assert (status, printed.strip()) == (
        1,
        "Not deployed: There is no job 'reports'. The jobs are: cloud_function.",
    )


def test_a_job_without_a_dockerfile_is_an_error(
    project: Path, google: Google, cloud: Cloud
) -> None:
    with moved(project / "cloud_function" / "Dockerfile"):
        recipe = ("uv", "run", "just", "deploy-job", "nprod")
        status, printed = end(*recipe, cwd=project, env=google.settings)

    assert (status, printed.strip()) == (
        1,
        "Not deployed: cloud_function/Dockerfile, from which the job's image is built, is missing. "
        "The template has one, in cloud_function/.",
    )
    assert cloud.requests == []
