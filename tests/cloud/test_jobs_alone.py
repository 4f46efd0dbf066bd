"""A project without functions builds bundles for jobs, deploys them, and knows nothing else."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import JOBS_ALONE, Render, end, fail, moved, run
from google_cloud import Cloud, deployed_job
from google_stand_ins import Google, google_for_a_person

IMAGE = "europe-west4-docker.pkg.dev/my-gcp-project/my-data-platform/cloud_run_job-job"


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project whose tasks only run in jobs."""
    project = render(JOBS_ALONE)
    run("uv", "run", "just", cwd=project)
    run("uv", "lock", cwd=project / "cloud_run_job")
    return project


@pytest.fixture
def cloud(project: Path) -> Cloud:
    """The project in Google Cloud, with a job that has code."""
    variables = (project / "infra" / "environments" / "nprod.tfvars").read_text()
    [sources] = re.findall(r'^sources_bucket += "(.+)"$', variables, re.MULTILINE)
    return Cloud(functions={}, jobs={"my-data-platform": deployed_job()}, sources=sources)


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Google's servers, credentials for them, and a program in place of Terraform."""
    (tmp_path / "terraform").write_text("#!/bin/sh\n")
    (tmp_path / "terraform").chmod(0o755)
    with google_for_a_person(tmp_path, cloud.hosts()) as google:
        google.settings["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
        yield google


def test_the_bundle_has_the_entry_point_of_the_job(project: Path) -> None:
    run("uv", "run", "just", "bundle", cwd=project)

    assert [path.name for path in (project / "build").glob("*.zip")] == ["cloud_run_job.zip"]
    with ZipFile(project / "build" / "cloud_run_job.zip") as archive:
        names = set(archive.namelist())
    assert {"Dockerfile", "job.py", "requirements.txt", "tasks/people.py"} <= names


def test_a_bundle_without_the_entry_point_of_the_job_is_an_error(project: Path) -> None:
    with moved(project / "cloud_run_job" / "job.py"):
        printed = fail("uv", "run", "just", "bundle", cwd=project)

    assert "cloud_run_job/job.py, the entry point, is missing." in printed


def test_the_job_gets_an_image_that_is_built_from_its_bundle(
    project: Path, google: Google, cloud: Cloud
) -> None:
    recipe = ("uv", "run", "just", "deploy-job", "nprod")
    status, printed = end(*recipe, cwd=project, env=google.settings, timeout=120)

    assert status == 0, printed
    [build] = cloud.image_builds()
    assert build.body["images"][0].startswith(f"{IMAGE}:")
    assert build.body["serviceAccount"] == (
        "projects/my-gcp-project/serviceAccounts/"
        "my-data-platform-build@my-gcp-project.iam.gserviceaccount.com"
    )
    [container] = cloud.jobs["my-data-platform"]["template"]["template"]["containers"]
    assert container["image"].startswith(f"{IMAGE}@sha256:")


def test_a_job_without_a_dockerfile_is_an_error(project: Path, google: Google) -> None:
    with moved(project / "cloud_run_job" / "Dockerfile"):
        recipe = ("uv", "run", "just", "deploy-job", "nprod")
        status, printed = end(*recipe, cwd=project, env=google.settings)

    assert status == 1
    assert "The template has one, in cloud_run_job/." in printed


def deploy(project: Path, google: Google) -> str:
    """Deploy all but the code of the job, and return what was printed."""
    recipe = ("uv", "run", "python", "-m", "deployment.recipes", "deploy", "nprod")
    return run(*recipe, cwd=project, env=google.settings, timeout=60).stdout


def test_a_deployment_reports_that_it_replaces_other_code(
    project: Path, google: Google, cloud: Cloud
) -> None:
    labels = cloud.jobs["my-data-platform"]["labels"]
    labels["bundle"] = "f" * 63
    printed = deploy(project, google)

    text = (
        r"my-data-platform in nprod runs other code \(ffffffffffff\) than that of this checkout "
        r"\([0-9a-f]{12}\)\. After Terraform, this deployment replaces it without a question\. "
        r"Ctrl-C stops\."
    )
    assert re.search(text, printed), printed
    assert {request.host for request in cloud.requests} == {"run.googleapis.com"}


def test_a_deployment_of_the_same_code_or_of_the_first_reports_nothing(
    project: Path, google: Google, cloud: Cloud
) -> None:
    printed = run("uv", "run", "just", "bundle", cwd=project).stdout
    labels = cloud.jobs["my-data-platform"]["labels"]
    labels["bundle"] = printed.strip().rpartition(":")[2][:63]
    assert "other code" not in deploy(project, google)

    del labels["bundle"]
    assert "other code" not in deploy(project, google)

    cloud.jobs.clear()
    assert "other code" not in deploy(project, google)


def test_bootstrap_turns_on_only_the_services_that_jobs_need(
    project: Path, google: Google, cloud: Cloud
) -> None:
    status, printed = end(
        *("uv", "run", "just", "bootstrap", "nprod"), cwd=project, env=google.settings, timeout=60
    )

    assert status == 0, printed
    assert "run.googleapis.com" in cloud.enabled
    assert "cloudfunctions.googleapis.com" not in cloud.enabled
    assert cloud.identities == {
        f"{name}.googleapis.com" for name in ("artifactregistry", "cloudbuild", "run")
    }
