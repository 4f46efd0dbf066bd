"""The doctor finds each error of a first deployment, and suggests a fix."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import diagnoses
import pytest
from conftest import Render, end, replaced, run
from google_cloud import HOSTS, Cloud, error
from google_stand_ins import (
    FUNCTION_HOST,
    Google,
    Response,
    google_stand_ins,
    service_account_key,
)

# Prints the account of an environment.
SETTINGS = """
from deployment import environments, settings
environment = environments.find_environment("nprod")
print(settings.expected_settings(environment)["IMPERSONATE_SERVICE_ACCOUNT"])
"""
CHECKS = [
    "tools",
    "settings",
    "login",
    "project",
    "APIs",
    "roles",
    "region",
    "buckets",
    "function URL",
    "token",
    "messages",
]
# The APIs that a function needs.
APIS = [
    *("artifactregistry", "cloudbuild", "cloudfunctions", "iam", "iamcredentials", "logging"),
    *("monitoring", "run", "secretmanager", "storage", "sts"),
]
IN_REGION = Response(200, {"projectNumber": "1", "location": "EUROPE-WEST4"})
# Runs the doctor and the local cloud, whose function is behind the front end.
SCRIPT = """
import os, sys
from pathlib import Path
from local_cloud.cloud import local_cloud

folder = Path(sys.argv[1])
with local_cloud(folder / "lake") as settings:
    (folder / "function_url").write_text(settings["FUNCTION_URL"])
    os.environ.update({**settings, "FUNCTION_URL": sys.argv[2], "LAKE_URI": "gs://a-lake"})
    from deployment import doctor
    sys.exit(doctor.main())
"""


@pytest.fixture
def cloud() -> Cloud:
    """A project without errors, until a test adds one."""
    return Cloud(
        enabled={f"{name}.googleapis.com" for name in APIS},
        buckets={
            "my-gcp-project-data-lake": IN_REGION,
            "my-gcp-project-pipes-messages": IN_REGION,
            "a-lake": IN_REGION,
        },
    )


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Google's servers, and credentials for them."""
    with google_stand_ins(tmp_path, *HOSTS) as google:
        google.hosts = cloud.hosts()
        file = tmp_path / "credentials.json"
        file.write_text(json.dumps(service_account_key()))
        google.settings |= {
            "FUNCTION_URL": f"https://{FUNCTION_HOST}",
            "GOOGLE_APPLICATION_CREDENTIALS": str(file),
            "UV_OFFLINE": "true",  # the proxy serves no packages
        }
        yield google


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project with installed environments."""
    project = render()
    run("uv", "run", "just", cwd=project)
    for part in ("orchestrator", "cloud_function"):
        run("uv", "sync", cwd=project / part)
    return project


def diagnose(project: Path, google: Google, *arguments: str, **settings: str) -> dict[str, str]:
    """The doctor's result of each check."""
    return diagnoses.diagnose(CHECKS, project, google, *arguments, **settings)


def parse_results(status: int, printed: str) -> dict[str, str]:
    """The result of each check, of a doctor that has ended."""
    return diagnoses.parse_results(CHECKS, status, printed)


def test_a_function_that_is_deployed_and_called_is_healthy(
    project: Path, google: Google, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ("uv", "run", "python", str(script), str(tmp_path), f"https://{FUNCTION_HOST}")

    results = parse_results(*end(*command, cwd=project, env=google.settings))

    assert {text.partition(" ")[0] for text in results.values()} == {"ok"}, results
    assert [call.bearer is None for call in google.calls] == [True, False]


def test_a_function_that_rejects_dagster_is_found(
    project: Path, google: Google, tmp_path: Path
) -> None:
    google.audience = "https://people.example.com"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ("uv", "run", "python", str(script), str(tmp_path), f"https://{FUNCTION_HOST}")

    results = parse_results(*end(*command, cwd=project, env=google.settings))

    assert results["token"].startswith("ok ")
    assert "responded 401: Unauthorized" in results["messages"]
    assert (
        "set FUNCTION_AUDIENCE to it. Fix: see README.md, 'When a call fails'."
        in results["messages"]
    )


def test_a_function_that_was_just_deployed_is_called_until_its_roles_are_effective(
    project: Path, google: Google, cloud: Cloud, tmp_path: Path
) -> None:
    def describe(age: timedelta) -> None:
        google.forbidden = 1
        google.calls.clear()
        cloud.functions["my-data-platform"].shown |= {
            "updateTime": f"{datetime.now(UTC) - age:%Y-%m-%dT%H:%M:%S.123456789Z}",
            "serviceConfig": {"uri": f"https://{FUNCTION_HOST}"},
        }

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ("uv", "run", "python", str(script), str(tmp_path), f"https://{FUNCTION_HOST}")

    describe(timedelta(minutes=3))
    new = parse_results(*end(*command, cwd=project, env=google.settings))
    assert new["messages"].startswith("ok ")
    assert [call.bearer is None for call in google.calls] == [True, False, False]

    describe(timedelta(minutes=30))
    old = parse_results(*end(*command, cwd=project, env=google.settings))
    assert "responded 403" in old["messages"]
    assert "Grant roles/run.invoker on the function to that account." in old["messages"]
    assert len(google.calls) == 2


def test_a_lake_in_two_regions_is_in_the_region(
    project: Path, google: Google, cloud: Cloud
) -> None:
    placement = {"dataLocations": ["EUROPE-WEST1", "EUROPE-WEST4"]}
    both = {"projectNumber": "1", "location": "EU", "customPlacementConfig": placement}
    with_lake(cloud, Response(200, both))

    results = diagnose(project, google, FUNCTION_URL="https://localhost:9")

    assert results["buckets"].startswith("ok ")


def test_without_a_cloud_it_lists_the_skipped_checks(project: Path, tmp_path: Path) -> None:
    logged_out = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}
    settings = {"FUNCTION_URL": "https://localhost:9"}

    results = parse_results(
        *end("uv", "run", "just", "doctor", cwd=project, env=logged_out | settings)
    )

    assert results["settings"] == "ok orchestrator/.env.example, for my-gcp-project"
    assert results["login"].startswith(
        "FINDING You are not logged in to Google Cloud. Run: gcloud auth"
    )
    assert results["buckets"] == "skipped needs the check 'project'"
    assert (
        "Could not reach https://localhost:9: [Errno 111] Connection refused."
        in results["function URL"]
    )
    assert results["messages"] == "skipped needs the check 'token'"


def with_lake(cloud: Cloud, response: Response) -> None:
    """Change the response with the bucket of the data lake."""
    cloud.buckets["my-gcp-project-data-lake"] = response


Break = Callable[[Cloud], object]
FINDINGS: dict[str, tuple[Break, str, str, str]] = {
    "a project that does not exist": (
        lambda cloud: setattr(cloud, "description", error(403, "It may not exist.")),
        "project",
        "my-gcp-project does not exist, or you may not see it, or its API is off: It may not",
        "`gcloud projects list`",
    ),
    "a project that is being deleted": (
        lambda cloud: setattr(
            cloud, "description", Response(200, {"lifecycleState": "DELETE_REQUESTED"})
        ),
        "project",
        "is being deleted",
        "gcloud projects undelete my-gcp-project",
    ),
    "an API that is off": (
        lambda cloud: cloud.enabled.remove("run.googleapis.com"),
        "APIs",
        "Not enabled: run.googleapis.com.",
        "gcloud services enable run.googleapis.com --project=my-gcp-project",
    ),
    "a role that is missing": (
        lambda cloud: setattr(cloud, "denied", ("storage.buckets.setIamPolicy",)),
        "roles",
        "You lack roles to deploy: roles/storage.admin.",
        "ask an administrator of the project my-gcp-project",
    ),
    "a region without functions": (
        lambda cloud: setattr(cloud, "regions", ("us-east1",)),
        "region",
        "Cloud Run functions do not run in the region europe-west4.",
        "use one of us-east1",
    ),
    "a bucket that does not exist": (
        lambda cloud: cloud.buckets.pop("my-gcp-project-data-lake"),
        "buckets",
        "There is no bucket my-gcp-project-data-lake.",
        "uv run just deploy ENVIRONMENT",
    ),
    "a bucket of another owner": (
        lambda cloud: with_lake(cloud, error(403, "No access.")),
        "buckets",
        "has another owner, or you may not see it: No access.",
        "choose another name",
    ),
    "a bucket of another project": (
        lambda cloud: with_lake(cloud, Response(200, {"projectNumber": "2"})),
        "buckets",
        "belongs to another project",
        "choose another name",
    ),
    "a bucket in another region": (
        lambda cloud: with_lake(cloud, Response(200, {"projectNumber": "1", "location": "EU"})),
        "buckets",
        "is in eu, not in europe-west4",
        "a bucket cannot be moved",
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_error_is_a_finding_with_a_fix(
    name: str, project: Path, google: Google, cloud: Cloud
) -> None:
    break_, check, problem, fix = FINDINGS[name]
    break_(cloud)
    google.settings["FUNCTION_URL"] = "https://localhost:9"

    results = diagnose(project, google)

    assert results[check].startswith("FINDING ")
    assert problem in results[check]
    assert fix in results[check].partition(" Fix: ")[2]
    before = CHECKS[: CHECKS.index(check)]
    assert all(results[name].startswith("ok ") for name in before), results


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (Response(200, b"OK"), "responded 200 to a request without a token, instead of 401 or 403"),
        (Response(404, b""), f"There is no function at https://{FUNCTION_HOST}"),
    ],
)
def test_a_function_that_is_public_or_does_not_exist_is_found(
    response: Response, problem: str, project: Path, google: Google
) -> None:
    google.hosts[FUNCTION_HOST] = lambda request: response

    assert problem in diagnose(project, google)["function URL"]


def test_each_function_is_checked(project: Path, google: Google) -> None:
    (project / "reports" / "tasks").mkdir(parents=True)
    (project / "reports" / "tasks" / "__init__.py").touch()
    try:
        missing = diagnose(project, google)
        results = diagnose(project, google, FUNCTION_URL_REPORTS=f"https://{FUNCTION_HOST}:1")
    finally:
        shutil.rmtree(project / "reports")

    assert "does not set FUNCTION_URL_REPORTS." in missing["settings"]
    problem = f"There is no function at https://{FUNCTION_HOST}:1"
    assert problem in results["function URL"]


def test_a_login_that_google_rejects_is_found(project: Path, google: Google) -> None:
    google.hosts["oauth2.googleapis.com"] = lambda request: Response(
        400, {"error": "invalid_grant", "error_description": "Token has been revoked."}
    )

    results = diagnose(project, google, FUNCTION_URL="https://localhost:9")

    assert "FINDING Google rejects your login:" in results["login"]
    assert "gcloud auth application-default login" in results["login"]


def test_the_region_of_the_settings_is_checked(project: Path, google: Google) -> None:
    results = diagnose(
        project, google, FUNCTION_URL="https://localhost:9", GOOGLE_CLOUD_REGION="us-east1"
    )

    assert results["region"] == "ok us-east1"
    assert "is in europe-west4, not in us-east1." in results["buckets"]


def test_a_machine_without_a_network_is_no_rejected_login(project: Path, google: Google) -> None:
    results = diagnose(project, google, HTTPS_PROXY="http://127.0.0.1:9")

    assert "FINDING Could not reach Google: " in results["login"]
    assert "Fix: check the network and its proxy." in results["login"]


def test_an_environment_is_called_as_the_account_that_its_users_impersonate(
    project: Path,
) -> None:
    variables = project / "infra" / "environments" / "nprod.tfvars"
    with replaced(variables, "orchestrator_users = []", 'orchestrator_users = ["user:a@b.c"]'):
        printed = run("uv", "run", "python", "-c", SETTINGS, cwd=project).stdout

    account = "my-data-platform-orchestrator@my-gcp-project.iam.gserviceaccount.com"
    assert printed.strip() == account


def test_an_environment_can_be_checked_before_it_is_deployed(project: Path, google: Google) -> None:
    results = diagnose(project, google, "prod")

    assert "infra/environments/prod.tfvars, for my-gcp-project-prod" in results["settings"]
    assert "There is no bucket my-gcp-project-data-lake-prod." in results["buckets"]
    assert "Fix: uv run just deploy prod" in results["buckets"]
    assert "my-gcp-project-prod.cloudfunctions.net/my-data-platform" in results["function URL"]
