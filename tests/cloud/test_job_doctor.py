"""The doctor finds what keeps Dagster from running a Cloud Run job, and suggests a fix."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FUNCTIONS_AND_JOBS, JOBS_ALONE, Render, replaced, run
from diagnoses import diagnose
from google_cloud import HOSTS, Cloud, deployed_job, error, first_job
from google_stand_ins import DAGSTER, Google, Response, google_stand_ins

SHARED_CHECKS = ["tools", "settings", "login", "project", "APIs", "roles", "region", "buckets"]
JOB_CHECKS = ["job", "job settings", "account"]
CHECKS = [*SHARED_CHECKS, *JOB_CHECKS]
# The APIs that a job needs.
APIS = [
    *("artifactregistry", "cloudbuild", "iam", "iamcredentials", "logging", "monitoring"),
    *("run", "secretmanager", "storage", "sts"),
]
BUCKET = Response(200, {"projectNumber": "1", "location": "EUROPE-WEST4"})
PERSON = {
    "type": "authorized_user",
    "client_id": "gcloud",
    "client_secret": "x",
    "refresh_token": "y",
}
MAY_READ = "and read messages in my-gcp-project-pipes-messages"
JOB = "projects/my-gcp-project/locations/europe-west4/jobs/my-data-platform"
# Prints the settings of an environment.
SETTINGS = """
import json
from deployment import environments, settings
print(json.dumps(settings.expected_settings(environments.find_environment("nprod"))))
"""


@pytest.fixture
def cloud() -> Cloud:
    """A project whose job is deployed, until a test changes it."""
    return Cloud(
        functions={},
        jobs={"my-data-platform": deployed_job()},
        enabled={f"{name}.googleapis.com" for name in APIS},
        buckets={"my-gcp-project-data-lake": BUCKET, "my-gcp-project-pipes-messages": BUCKET},
    )


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Google's servers, and the login of a person."""
    with google_stand_ins(tmp_path, *HOSTS) as google:
        google.hosts = cloud.hosts()
        file = tmp_path / "credentials.json"
        file.write_text(json.dumps(PERSON))
        google.settings |= {
            "GOOGLE_APPLICATION_CREDENTIALS": str(file),
            "UV_OFFLINE": "true",  # the proxy serves no packages
        }
        yield google


def installed(project: Path) -> Path:
    """The project, with the environment of its tools."""
    run("uv", "run", "just", cwd=project)
    return project


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project whose tasks only run in jobs."""
    return installed(render(JOBS_ALONE))


@pytest.fixture(scope="module")
def project_with_both(render: Render) -> Path:
    """A project whose tasks run in functions and in jobs."""
    return installed(render(FUNCTIONS_AND_JOBS))


def test_a_job_that_is_deployed_is_healthy(project: Path, google: Google, cloud: Cloud) -> None:
    results = diagnose(CHECKS, project, google)

    assert {text.partition(" ")[0] for text in results.values()} == {"ok"}, results
    assert results["account"] == f"ok Your account may run my-data-platform, {MAY_READ}"
    assert "cloudfunctions.googleapis.com" not in {request.host for request in cloud.requests}


def container(cloud: Cloud) -> dict[str, Any]:
    """The container of the job."""
    [container] = cloud.jobs["my-data-platform"]["template"]["template"]["containers"]
    found: dict[str, Any] = container
    return found


def show(cloud: Cloud, **state: object) -> None:
    """Change what the job shows of its last update."""
    cloud.jobs["my-data-platform"] |= state


Break = Callable[[Cloud], object]
FINDINGS: dict[str, tuple[Break, str, str, str]] = {
    "an API that is off": (
        lambda cloud: cloud.enabled.remove("cloudbuild.googleapis.com"),
        "APIs",
        "Not enabled: cloudbuild.googleapis.com.",
        "gcloud services enable cloudbuild.googleapis.com --project=my-gcp-project",
    ),
    "a role that is missing": (
        lambda cloud: setattr(cloud, "denied", ("run.jobs.create",)),
        "roles",
        "You lack roles to deploy: roles/run.admin.",
        "ask an administrator of the project my-gcp-project",
    ),
    "a region without jobs": (
        lambda cloud: setattr(cloud, "job_regions", ("us-east1",)),
        "region",
        "Cloud Run jobs do not run in the region europe-west4.",
        "use one of us-east1",
    ),
    "a bucket in another region": (
        lambda cloud: cloud.buckets.update(
            {
                "my-gcp-project-data-lake": Response(
                    200, {"projectNumber": "1", "location": "US-EAST1"}
                )
            }
        ),
        "buckets",
        "is in us-east1, not in europe-west4.",
        "a bucket cannot be moved",
    ),
    "a job that does not exist": (
        lambda cloud: cloud.jobs.clear(),
        "job",
        "There is no job my-data-platform in europe-west4.",
        "uv run just deploy ENVIRONMENT",
    ),
    "a job without code": (
        lambda cloud: cloud.jobs.update({"my-data-platform": first_job()}),
        "job",
        "The job my-data-platform has no code: its image is Google's placeholder.",
        "uv run just deploy-job ENVIRONMENT",
    ),
    "a job that cannot run": (
        lambda cloud: show(
            cloud,
            terminalCondition={"state": "CONDITION_FAILED", "message": "Image 'a' not found."},
        ),
        "job",
        "The job my-data-platform cannot run: Image 'a' not found. Fix:",
        "uv run just deploy-job ENVIRONMENT",
    ),
    "a job that cannot run without a reason": (
        lambda cloud: show(cloud, terminalCondition={"state": "CONDITION_FAILED"}),
        "job",
        "The job my-data-platform cannot run: CONDITION_FAILED. Fix:",
        "uv run just deploy-job ENVIRONMENT",
    ),
    "a job that is being updated": (
        lambda cloud: show(cloud, reconciling=True, looks=9),
        "job",
        "The job my-data-platform is being updated.",
        "wait until that has ended.",
    ),
    "a job whose tasks Google retries": (
        lambda cloud: cloud.jobs["my-data-platform"]["template"]["template"].update(maxRetries=3),
        "job settings",
        "Google starts a failed task of the job my-data-platform again, up to 3 times, and",
        "gcloud run jobs update my-data-platform --max-retries=0 --region=europe-west4 "
        "--project=my-gcp-project",
    ),
    "a job with another bucket for messages": (
        lambda cloud: container(cloud)["env"][0].update(value="elsewhere"),
        "job settings",
        "The messages of the job my-data-platform go to elsewhere, and Dagster reads them from "
        "my-gcp-project-pipes-messages.",
        "set the job's environment variable MESSAGES_BUCKET to the bucket in orchestrator/.env",
    ),
    "a job without a bucket for messages": (
        lambda cloud: container(cloud).pop("env"),
        "job settings",
        "The messages of the job my-data-platform go to no bucket, and",
        "set the job's environment variable MESSAGES_BUCKET",
    ),
    "an account that may not run the job": (
        lambda cloud: setattr(cloud, "denied", ("run.jobs.runWithOverrides",)),
        "account",
        "Your account may not run the job my-data-platform: run.jobs.runWithOverrides missing.",
        "grant it roles/run.jobsExecutorWithOverrides on the job.",
    ),
    "an account that may not read messages": (
        lambda cloud: setattr(cloud, "denied", ("storage.objects.list",)),
        "account",
        "storage.objects.list missing.",
        "grant it roles/storage.objectViewer on the bucket.",
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_error_is_a_finding_with_a_fix(
    name: str, project: Path, google: Google, cloud: Cloud
) -> None:
    break_, check, problem, fix = FINDINGS[name]
    break_(cloud)

    results = diagnose(CHECKS, project, google)

    assert results[check].startswith("FINDING ")
    assert problem in results[check]
    assert fix in results[check].partition(" Fix: ")[2]
    assert [name for name, text in results.items() if text.startswith("FINDING ")] == [check]


def test_the_name_of_the_job_is_a_required_setting(project: Path, google: Google) -> None:
    results = diagnose(CHECKS, project, google, JOB_NAME="")

    assert "does not set JOB_NAME. Fix: see orchestrator/.env.example." in results["settings"]


def test_dagster_needs_the_right_to_run_the_job_as_the_account_that_it_acts_as(
    project: Path, google: Google, cloud: Cloud
) -> None:
    results = diagnose(CHECKS, project, google, IMPERSONATE_SERVICE_ACCOUNT=DAGSTER)

    assert results["account"] == f"ok {DAGSTER} may run my-data-platform, {MAY_READ}"
    rights = (f"/v2/{JOB}:", "/storage/v1/b/my-gcp-project-pipes-messages/iam/")
    asked = [request for request in cloud.requests if request.path.startswith(rights)]
    assert [request.bearer for request in asked] == ["of-an-account", "of-an-account"]
    others = [request for request in cloud.requests if request not in asked]
    assert {"of-a-person"} == {request.bearer for request in others}


def test_an_account_that_you_cannot_act_as_is_found(project: Path, google: Google) -> None:
    google.hosts["iamcredentials.googleapis.com"] = lambda request: error(403, "Denied.")

    results = diagnose(CHECKS, project, google, IMPERSONATE_SERVICE_ACCOUNT=DAGSTER)

    assert f"FINDING You cannot act as {DAGSTER}: " in results["account"]
    assert "Denied." in results["account"]
    assert "roles/iam.serviceAccountTokenCreator on it." in results["account"]


def test_each_job_is_checked(project: Path, google: Google, cloud: Cloud) -> None:
    for folder in ("no_job", "reports"):
        (project / folder / "tasks").mkdir(parents=True)
        (project / folder / "tasks" / "__init__.py").touch()
    (project / "reports" / "job.py").touch()
    try:
        missing = diagnose(CHECKS, project, google)
        cloud.jobs["my-data-platform-reports"] = deployed_job()
        results = diagnose(CHECKS, project, google)
    finally:
        for folder in ("no_job", "reports"):
            shutil.rmtree(project / folder)

    assert "There is no job my-data-platform-reports in europe-west4." in missing["job"]
    names = "my-data-platform and my-data-platform-reports"
    assert results["job"] == f"ok {names}"
    assert results["account"] == f"ok Your account may run {names}, {MAY_READ}"


def test_an_environment_can_be_checked_before_it_is_deployed(
    project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.jobs.clear()

    results = diagnose(CHECKS, project, google, "prod")

    assert "infra/environments/prod.tfvars, for my-gcp-project-prod" in results["settings"]
    assert "There is no bucket my-gcp-project-data-lake-prod." in results["buckets"]
    assert "There is no job my-data-platform in europe-west4." in results["job"]
    assert "Fix: uv run just deploy prod" in results["job"]


def test_the_settings_of_an_environment_name_its_job(project: Path) -> None:
    variables = project / "infra" / "environments" / "nprod.tfvars"
    with replaced(variables, "orchestrator_users = []", 'orchestrator_users = ["user:a@b.c"]'):
        printed = run("uv", "run", "python", "-c", SETTINGS, cwd=project).stdout

    account = "my-data-platform-orchestrator@my-gcp-project.iam.gserviceaccount.com"
    assert json.loads(printed.splitlines()[-1]) == {
        "GOOGLE_CLOUD_PROJECT": "my-gcp-project",
        "GOOGLE_CLOUD_REGION": "europe-west4",
        "IMPERSONATE_SERVICE_ACCOUNT": account,
        "JOB_NAME": "my-data-platform",
        "LAKE_URI": "gs://my-gcp-project-data-lake",
        "MESSAGES_BUCKET": "my-gcp-project-pipes-messages",
    }


def test_functions_and_jobs_are_both_checked(
    project_with_both: Path, google: Google, cloud: Cloud
) -> None:
    checks = [*SHARED_CHECKS, "function URL", "token", "messages", *JOB_CHECKS]
    cloud.enabled.add("cloudfunctions.googleapis.com")
    cloud.jobs.clear()

    results = diagnose(checks, project_with_both, google, "nprod")

    assert results["region"] == "ok europe-west4"
    host = "europe-west4-my-gcp-project.cloudfunctions.net"
    assert f"Could not reach https://{host}/my-data-platform:" in results["function URL"]
    assert "There is no job my-data-platform in europe-west4." in results["job"]


def test_a_region_has_both_functions_and_jobs(
    project_with_both: Path, google: Google, cloud: Cloud
) -> None:
    checks = [*SHARED_CHECKS, "function URL", "token", "messages", *JOB_CHECKS]
    cloud.enabled.add("cloudfunctions.googleapis.com")

    cloud.regions = ("us-east1",)
    without_functions = diagnose(checks, project_with_both, google, "nprod")
    cloud.regions, cloud.job_regions = ("europe-west4",), ("us-east1",)
    without_jobs = diagnose(checks, project_with_both, google, "nprod")

    assert "Cloud Run functions do not run in the region" in without_functions["region"]
    assert "Cloud Run jobs do not run in the region" in without_jobs["region"]
