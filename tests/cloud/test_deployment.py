"""Deployments: new code is served, or the previous version goes on serving."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Render, end, fail, initialize, replace, run
from google_stand_ins import DAGSTER, Google, Request, Response, Serve, google_stand_ins

PROVIDER = "projects/1/locations/global/workloadIdentityPools/people-github/providers/github"
FUNCTION = "/v2/projects/my-gcp-project/locations/europe-west4/functions/my-data-platform"


@dataclass
class Cloud:
    """A fake of the function in Google Cloud, and of the bucket with its sources.

    Attributes:
        states: The function after an update, for each request.
        rejection: The response to an update, if it is rejected.
        stored: The sources by name.
        requests: All requests.
    """

    states: list[dict[str, Any]] = field(default_factory=list)
    rejection: Response | None = None
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    function: dict[str, Any] = field(default_factory=lambda: active("old"))
    updates: Iterator[dict[str, Any]] = field(default_factory=lambda: iter(()))

    def storage(self, request: Request) -> Response:
        """Store an object, unless it exists."""
        self.requests.append(request)
        name = request.query["name"]
        if request.query["ifGenerationMatch"] == "0" and name in self.stored:
            return Response(412, {"error": {"message": "conditionNotMet"}})
        self.stored[name] = request.content
        return Response(200, {"name": name})

    def functions(self, request: Request) -> Response:
        """Return the function, or start an update."""
        self.requests.append(request)
        if request.method == "PATCH":
            if self.rejection is not None:
                return self.rejection
            self.updates = iter(self.states)
            return Response(200, {"name": "operations/any"})
        self.function = next(self.updates, self.function)
        return Response(200, self.function)


def active(build: str, **more: Any) -> dict[str, Any]:
    return {"state": "ACTIVE", "buildConfig": {"build": build}, **more}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Replacements of Google's servers, with the environment of a job in continuous integration."""
    hosts: dict[str, Serve] = {
        "storage.googleapis.com": cloud.storage,
        "cloudfunctions.googleapis.com": cloud.functions,
    }
    with google_stand_ins(tmp_path, *hosts) as google:
        google.hosts = hosts
        google.settings |= {
            "CI": "true",
            "DEPLOYER_SERVICE_ACCOUNT": DAGSTER,
            "ID_TOKEN": "proof",
            "UV_OFFLINE": "true",  # the proxy serves no packages
            "WORKLOAD_IDENTITY_PROVIDER": PROVIDER,
        }
        yield google


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project that continuous integration may deploy to nprod."""
    project = render()
    run("uv", "run", "just", cwd=project)
    run("uv", "lock", cwd=project / "cloud_function")
    replace(
        project / "infra" / "environments" / "nprod.tfvars",
        '# github_repository = { id = "", owner_id = "" }',
        'github_repository = { id = "1", owner_id = "2" }',
    )
    return project


def deploy(project: Path, google: Google, environment: str = "nprod", **settings: str) -> str:
    """Deploy the function, and return the exit status and the output."""
    recipe = ("uv", "run", "just", "deploy-function", environment)
    status, printed = end(*recipe, cwd=project, env={**google.settings, **settings}, timeout=60)
    return f"{status} {printed}"


def test_the_deployer_uploads_the_bundle_and_waits_until_it_is_served(
    project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.states = [{**active("old"), "state": "DEPLOYING"}, active("new")]

    printed = deploy(project, google)

    [(name, content)] = cloud.stored.items()
    digest = hashlib.sha256(content).hexdigest()
    assert name == f"{digest}.zip"
    assert content == (project / "build" / "function.zip").read_bytes()
    assert printed.startswith("0 ")
    assert f"my-data-platform in nprod serves {digest}" in printed
    [update] = (request for request in cloud.requests if request.method == "PATCH")
    assert update.path.partition("?")[0] == FUNCTION
    assert update.query == {"updateMask": "buildConfig.source"}
    assert update.body["buildConfig"]["source"]["storageSource"] == {
        "bucket": "my-gcp-project-function-sources",
        "object": name,
    }


def test_the_deployer_has_no_key(project: Path, google: Google, cloud: Cloud) -> None:
    cloud.states = [active("new")]

    deploy(project, google)

    exchange, impersonation = google.token_requests
    assert exchange.host == "sts.googleapis.com"
    assert exchange.body["subject_token"] == "proof"
    assert exchange.body["audience"] == f"//iam.googleapis.com/{PROVIDER}"
    assert impersonation.path.endswith(f"/{DAGSTER}:generateAccessToken")
    assert {request.bearer for request in cloud.requests} == {"of-an-account"}


def test_an_uploaded_bundle_is_not_uploaded_again(
    project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.states = [active("new")]
    deploy(project, google)
    before = dict(cloud.stored)
    cloud.states = [active("newer")]

    assert deploy(project, google).startswith("0 ")
    assert cloud.stored == before


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (
            active("old", stateMessages=[{"severity": "ERROR", "message": "No matching version."}]),
            "The previous version goes on serving. No matching version.",
        ),
        (
            {"state": "FAILED", "stateMessages": [{"severity": "ERROR", "message": "No port."}]},
            "The function is not served. No port.",
        ),
    ],
)
def test_a_failed_build_fails_the_deployment_with_the_reason(
    state: dict[str, Any], error: str, project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.states = [state]

    printed = deploy(project, google)

    assert printed.startswith("1 ")
    assert f"Not deployed: {error}" in printed


def test_a_request_is_retried_after_a_temporary_error(
    project: Path, google: Google, cloud: Cloud
) -> None:
    responses = iter([Response(503), Response(500), Response(429)])
    google.hosts["cloudfunctions.googleapis.com"] = lambda request: (
        next(responses, None) or cloud.functions(request)
    )
    cloud.states = [active("new")]

    assert deploy(project, google).startswith("0 ")


def test_an_error_of_google_is_printed(project: Path, google: Google, cloud: Cloud) -> None:
    message = "Permission 'cloudfunctions.functions.update' denied."
    cloud.rejection = Response(403, {"error": {"message": message}})

    assert f"Not deployed: {message}" in deploy(project, google)


def test_a_deployment_needs_an_environment_and_credentials(project: Path, google: Google) -> None:
    skipped = deploy(project, google, "prod")
    assert skipped.startswith("0 Skipped: infra/environments/prod.tfvars names no repository")
    assert "set without ID_TOKEN. See infra/README.md" in deploy(project, google, ID_TOKEN="")
    unknown = deploy(project, google, "staging")
    assert "no environment 'staging' in infra/environments. There are: nprod, prod." in unknown
    google.settings |= {"NO_GCE_CHECK": "true", "GCE_METADATA_HOST": "", "GCE_METADATA_IP": ""}
    nobody = deploy(project, google, WORKLOAD_IDENTITY_PROVIDER="")
    assert nobody.startswith("1 ")
    assert "You are not logged in to Google Cloud. Run: gcloud auth application-def" in nobody
    assert google.token_requests == []


def test_a_syntax_error_in_an_environment_is_reported_by_its_line(
    render: Render, google: Google
) -> None:
    project = render()
    file = project / "infra" / "environments" / "nprod.tfvars"
    replace(file, 'region          = "europe-west4"', "region          =")
    [line] = (
        number
        for number, text in enumerate(file.read_text().splitlines(), 1)
        if text.startswith("region")
    )

    printed = deploy(project, google, UV_OFFLINE="")

    assert (
        f"Could not parse infra/environments/nprod.tfvars: syntax error in line {line}." in printed
    )


@pytest.mark.parametrize("recipe", ["bootstrap", "plan", "deploy", "destroy", "settings"])
def test_terraform_recipes_need_terraform_and_an_environment(
    recipe: str, project: Path, tmp_path: Path
) -> None:
    for program in ("uv", "sh"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)

    unknown = fail("uv", "run", "just", recipe, "staging", cwd=project)
    uninstalled = fail(
        "uv", "run", "just", recipe, "nprod", cwd=project, env={"PATH": str(tmp_path)}
    )

    assert f"{recipe}: There is no environment 'staging'" in unknown
    assert f"{recipe}: Terraform is not installed: https://" in uninstalled


@pytest.mark.parametrize("recipe", ["plan", "deploy", "destroy"])
def test_without_a_login_terraform_validates_infra(
    recipe: str, project: Path, tmp_path: Path
) -> None:
    initialize(project / "infra")
    nobody = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}

    printed = fail("uv", "run", "just", recipe, "nprod", cwd=project, env=nobody)

    assert "Built build/function.zip and validated infra/. Skipped the rest." in printed
    assert "gcloud auth application-default login" in printed


@pytest.mark.parametrize("recipe", ["bootstrap", "settings"])
def test_recipes_that_need_a_login_say_so(recipe: str, project: Path, tmp_path: Path) -> None:
    nobody = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}

    printed = fail("uv", "run", "just", recipe, "nprod", cwd=project, env=nobody)

    assert f"{recipe}: You are not logged in to Google Cloud. Run: gcloud auth" in printed
