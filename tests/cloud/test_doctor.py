"""The doctor finds each fault that a first deployment trips over, and says how to mend it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Render, end, run
from google_stand_ins import (
    FUNCTION_HOST,
    Answer,
    Google,
    Request,
    Serve,
    google_stand_ins,
    service_account_key,
)

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
# Runs the doctor beside the local cloud, whose function is behind the front end.
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


@dataclass
class Project:
    """A Google Cloud project in which all is well, unless something is changed.

    Attributes:
        found: What is answered for it.
        disabled: APIs that are off.
        denied: Permissions that whoever asks lacks.
        regions: Where functions can run.
        bucket: What is answered for each bucket.
    """

    found: Answer = field(
        default_factory=lambda: Answer(200, {"projectNumber": "1", "lifecycleState": "ACTIVE"})
    )
    disabled: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    regions: tuple[str, ...] = ("europe-west4", "us-east1")
    bucket: Answer = field(
        default_factory=lambda: Answer(200, {"projectNumber": "1", "location": "EUROPE-WEST4"})
    )

    def hosts(self) -> dict[str, Serve]:
        """Its servers."""
        return {
            "cloudresourcemanager.googleapis.com": self.manage,
            "serviceusage.googleapis.com": self.list_apis,
            "cloudfunctions.googleapis.com": self.list_regions,
            "storage.googleapis.com": lambda request: self.bucket,
        }

    def manage(self, request: Request) -> Answer:
        if not request.path.endswith(":testIamPermissions"):
            return self.found
        asked = request.body["permissions"]
        return Answer(200, {"permissions": [each for each in asked if each not in self.denied]})

    def list_apis(self, request: Request) -> Answer:
        names = [name.rpartition("/")[2] for name in request.queries["names"]]
        states = {name: "DISABLED" if name in self.disabled else "ENABLED" for name in names}
        services = [{"config": {"name": name}, "state": states[name]} for name in names]
        return Answer(200, {"services": services})

    def list_regions(self, request: Request) -> Answer:
        return Answer(200, {"locations": [{"locationId": name} for name in self.regions]})


@pytest.fixture
def cloud() -> Project:
    return Project()


@pytest.fixture
def google(tmp_path: Path, cloud: Project) -> Iterator[Google]:
    """Google's servers, and somebody who is logged in."""
    with google_stand_ins(tmp_path, *cloud.hosts()) as google:
        google.others = cloud.hosts()
        file = tmp_path / "credentials.json"
        file.write_text(json.dumps(service_account_key()))
        google.settings |= {
            "FUNCTION_URL": f"https://{FUNCTION_HOST}",
            "GOOGLE_APPLICATION_CREDENTIALS": str(file),
            "UV_OFFLINE": "true",  # where the proxy leads, there are no packages
        }
        yield google


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project whose environments have been made."""
    project = render()
    run("uv", "run", "just", cwd=project)
    for part in ("orchestrator", "cloud_function"):
        run("uv", "sync", cwd=project / part)
    return project


def examine(project: Path, google: Google, *arguments: str, **settings: str) -> dict[str, str]:
    """What the doctor says of each check."""
    command = ("uv", "run", "just", "doctor", *arguments)
    environment = {**google.settings, **settings}
    status, printed = end(*command, cwd=project, env=environment, timeout=120)
    return findings(status, printed)


def findings(status: int, printed: str) -> dict[str, str]:
    lines = [line for line in printed.splitlines() if line.startswith(("ok ", "FAULT", "skipped"))]
    found = {}
    for line in lines:
        kind, _, rest = line.partition(" ")
        name, _, says = rest.strip().partition(": ")
        found[name] = f"{kind} {says}"
    assert list(found) == CHECKS
    assert status == (0 if all(says.startswith("ok ") for says in found.values()) else 1)
    return found


def test_a_function_that_is_deployed_and_called_is_healthy(
    project: Path, google: Google, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ("uv", "run", "python", str(script), str(tmp_path), f"https://{FUNCTION_HOST}")

    found = findings(*end(*command, cwd=project, env=google.settings))

    assert {says.partition(" ")[0] for says in found.values()} == {"ok"}, found
    assert [call.bearer is None for call in google.calls] == [True, False]


def test_a_function_that_turns_dagster_away_is_found(
    project: Path, google: Google, tmp_path: Path
) -> None:
    google.audience = "https://people.example.com"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ("uv", "run", "python", str(script), str(tmp_path), f"https://{FUNCTION_HOST}")

    found = findings(*end(*command, cwd=project, env=google.settings))

    assert found["token"].startswith("ok ")
    assert "responded 401: Unauthorized" in found["messages"]
    assert "set FUNCTION_AUDIENCE to that. Fix: README.md has a table" in found["messages"]


def test_without_a_cloud_it_says_what_it_has_not_looked_at(project: Path, tmp_path: Path) -> None:
    nobody = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}
    settings = {"FUNCTION_URL": "https://localhost:9"}

    found = findings(*end("uv", "run", "just", "doctor", cwd=project, env=nobody | settings))

    assert found["settings"] == "ok orchestrator/.env.example, for my-gcp-project"
    assert found["login"].startswith("FAULT Nobody is logged in to Google Cloud: gcloud auth")
    assert found["buckets"] == "skipped there is nothing to look at without project"
    assert "could not be reached: [Errno 111] Connection refused" in found["function URL"]
    assert found["messages"] == "skipped there is nothing to look at without token"


def forbidden(message: str) -> Answer:
    return Answer(403, {"error": {"message": message}})


Spoil = Callable[[Project], None]
FAULTS: dict[str, tuple[Spoil, str, str, str]] = {
    "a project that is not there": (
        lambda cloud: setattr(cloud, "found", forbidden("It may not exist.")),
        "project",
        "my-gcp-project is no project that you may see, or its API is off: It may not exist.",
        "`gcloud projects list`",
    ),
    "a project that is being deleted": (
        lambda cloud: setattr(cloud, "found", Answer(200, {"lifecycleState": "DELETE_REQUESTED"})),
        "project",
        "is being deleted",
        "gcloud projects undelete my-gcp-project",
    ),
    "an API that is off": (
        lambda cloud: setattr(cloud, "disabled", ("run.googleapis.com",)),
        "APIs",
        "Not enabled: run.googleapis.com.",
        "gcloud services enable run.googleapis.com --project=my-gcp-project",
    ),
    "a role that is missing": (
        lambda cloud: setattr(cloud, "denied", ("storage.buckets.setIamPolicy",)),
        "roles",
        "To deploy, you lack roles/storage.admin.",
        "somebody who may grant them",
    ),
    "a region that is none": (
        lambda cloud: setattr(cloud, "regions", ("us-east1",)),
        "region",
        "europe-west4 is no region of Cloud Run functions.",
        "one of us-east1",
    ),
    "a bucket that is not there": (
        lambda cloud: setattr(cloud, "bucket", Answer(404, {"error": {"message": "None."}})),
        "buckets",
        "There is no bucket my-gcp-project-data-lake.",
        "uv run just deploy ENVIRONMENT makes it.",
    ),
    "a bucket of somebody else": (
        lambda cloud: setattr(cloud, "bucket", forbidden("No access.")),
        "buckets",
        "belongs to somebody else, or you may not see it: No access.",
        "choose another one",
    ),
    "a bucket of another project": (
        lambda cloud: setattr(cloud, "bucket", Answer(200, {"projectNumber": "2"})),
        "buckets",
        "belongs to another project",
        "choose another name",
    ),
    "a bucket in another region": (
        lambda cloud: setattr(
            cloud, "bucket", Answer(200, {"projectNumber": "1", "location": "EU"})
        ),
        "buckets",
        "is in eu, not in europe-west4",
        "a bucket cannot be moved",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_fix_is_named(
    name: str, project: Path, google: Google, cloud: Project
) -> None:
    spoil, check, problem, fix = FAULTS[name]
    spoil(cloud)
    google.settings["FUNCTION_URL"] = "https://localhost:9"

    found = examine(project, google)

    assert found[check].startswith("FAULT ")
    assert problem in found[check]
    assert fix in found[check].partition(" Fix: ")[2]
    before = CHECKS[: CHECKS.index(check)]
    assert all(found[name].startswith("ok ") for name in before), found


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(200, b"OK"), "answered 200 to somebody without a token, instead of 401 or 403"),
        (Answer(404, b""), f"There is no function at https://{FUNCTION_HOST}"),
    ],
)
def test_a_function_that_is_open_to_all_or_not_there_is_found(
    answer: Answer, problem: str, project: Path, google: Google
) -> None:
    google.others[FUNCTION_HOST] = lambda request: answer

    assert problem in examine(project, google)["function URL"]


def test_a_login_that_is_no_longer_good_is_found(project: Path, google: Google) -> None:
    google.others["oauth2.googleapis.com"] = lambda request: Answer(
        400, {"error": "invalid_grant", "error_description": "Token has been revoked."}
    )

    found = examine(project, google, FUNCTION_URL="https://localhost:9")

    assert "FAULT The login is no longer good:" in found["login"]
    assert "gcloud auth application-default login" in found["login"]


def test_an_environment_is_looked_at_by_its_name_before_it_is_deployed(
    project: Path, google: Google
) -> None:
    found = examine(project, google, "prod")

    assert "my-gcp-project-prod" in found["settings"]
    assert "my-gcp-project-data-lake-prod" in found["buckets"]
    assert "my-gcp-project-prod.cloudfunctions.net/my-data-platform" in found["function URL"]
