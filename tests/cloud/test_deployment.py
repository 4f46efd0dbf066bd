"""A deployment updates the function's code, or the old version keeps serving requests."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Render, end, fail, initialize, replace, require_program, run
from google_stand_ins import DAGSTER, Google, Request, Response, Serve, google_stand_ins

PROVIDER = "projects/1/locations/global/workloadIdentityPools/people-github/providers/github"
TOKEN_HOST = "pipelines.actions.githubusercontent.com"
FUNCTION = "/v2/projects/my-gcp-project/locations/europe-west4/functions/my-data-platform"


@dataclass
class Cloud:
    """The function and the bucket for its source code.

    Attributes:
        states: The states of the function after its update, one for each request.
        rejection: The error response to an update, if any.
        stored: The uploaded bundles by their names.
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
        """Describe the function, or start to update it."""
        self.requests.append(request)
        if request.method == "PATCH":
            if self.rejection is not None:
                return self.rejection
            self.updates = iter(self.states)
            return Response(200, {"name": "operations/any"})
        self.function = next(self.updates, self.function)
        return Response(200, self.function)


# What google-github-actions/auth writes.
GITHUB_CREDENTIALS = {
    "type": "external_account",
    "audience": f"//iam.googleapis.com/{PROVIDER}",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token",
    "service_account_impersonation_url": (
        "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"
        f"{DAGSTER}:generateAccessToken"
    ),
    "credential_source": {
        "url": f"https://{TOKEN_HOST}/token?audience=https://iam.googleapis.com/{PROVIDER}",
        "headers": {"Authorization": "Bearer of-a-job"},
        "format": {"type": "json", "subject_token_field_name": "value"},
    },
}
GITLAB = {
    "DEPLOYER_SERVICE_ACCOUNT": DAGSTER,
    "GOOGLE_APPLICATION_CREDENTIALS": "",
    "ID_TOKEN": "proof",
    "WORKLOAD_IDENTITY_PROVIDER": PROVIDER,
}


def active(build: str, **more: Any) -> dict[str, Any]:
    return {"state": "ACTIVE", "buildConfig": {"build": build}, **more}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Stand-ins for Google's servers, with the environment of a job in GitHub Actions."""
    hosts: dict[str, Serve] = {
        TOKEN_HOST: issue_token,
        "storage.googleapis.com": cloud.storage,
        "cloudfunctions.googleapis.com": cloud.functions,
    }
    with google_stand_ins(tmp_path, *hosts) as google:
        google.hosts = hosts
        google.settings |= {
            "CI": "true",
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "gha-creds.json"),
            "UV_OFFLINE": "true",  # the proxy has no packages
        }
        (tmp_path / "gha-creds.json").write_text(json.dumps(GITHUB_CREDENTIALS))
        yield google


def issue_token(request: Request) -> Response:
    """Issue the ID token of a job in GitHub Actions."""
    if request.bearer != "of-a-job":
        return Response(401)
    return Response(200, {"value": "proof"})


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project that CI may deploy to nprod."""
    project = render()
    run("uv", "run", "just", cwd=project)
    run("uv", "lock", cwd=project / "cloud_function")
    replace(
        project / "infra" / "environments" / "nprod.tfvars",
        '# git_repository = { id = "", owner_id = "" }',
        'git_repository = { id = "1", owner_id = "2" }',
    )
    return project


def deploy(
    project: Path, google: Google, environment: str = "nprod", *function: str, **settings: str
) -> str:
    """Deploy all functions or one, and return the exit status and the output."""
    recipe = ("uv", "run", "just", "deploy-function", environment, *function)
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
    assert content == (project / "build" / "cloud_function.zip").read_bytes()
    assert printed.startswith("0 ")
    assert f"my-data-platform in nprod serves {digest}" in printed
    [update] = (request for request in cloud.requests if request.method == "PATCH")
    assert update.path.partition("?")[0] == FUNCTION
    assert update.query == {"updateMask": "buildConfig.source"}
    assert update.body["buildConfig"]["source"]["storageSource"] == {
        "bucket": "my-gcp-project-function-sources",
        "object": name,
    }


@pytest.fixture
def with_reports(project: Path) -> Iterator[Path]:
    """The project with a second function."""
    run("uv", "run", "just", "add-function", "reports", cwd=project)
    yield project
    shutil.rmtree(project / "reports")


def test_all_functions_are_deployed_or_one(
    with_reports: Path, google: Google, cloud: Cloud
) -> None:
    def updated() -> list[str]:
        updates = [request for request in cloud.requests if request.method == "PATCH"]
        return [update.path.partition("?")[0].rpartition("/")[2] for update in updates]

    cloud.states = [active("new")]
    printed = deploy(with_reports, google, "nprod", "reports")

    assert "my-data-platform-reports in nprod serves " in printed
    assert updated() == ["my-data-platform-reports"]

    cloud.function = active("old")
    cloud.states = [active("newer")]
    assert deploy(with_reports, google, "nprod", "nope").startswith(
        "1 Not deployed: There is no function 'nope'. The functions are: cloud_function, reports."
    )
    assert updated() == ["my-data-platform-reports"]


@pytest.mark.parametrize("settings", [{}, GITLAB], ids=["github", "gitlab"])
def test_the_deployer_has_no_key(
    settings: dict[str, str], project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.states = [active("new")]

    assert deploy(project, google, **settings).startswith("0 ")

    exchange, impersonation = google.token_requests
    assert exchange.host == "sts.googleapis.com"
    assert exchange.body["subject_token"] == "proof"
    assert exchange.body["audience"] == f"//iam.googleapis.com/{PROVIDER}"
    assert impersonation.path.endswith(f"/{DAGSTER}:generateAccessToken")
    assert {request.bearer for request in cloud.requests} == {"of-an-account"}


def test_a_repository_that_may_not_deploy_gets_an_error(project: Path, google: Google) -> None:
    reason = "The given credential is rejected by the attribute condition."
    rejection = Response(400, {"error": "unauthorized_client", "error_description": reason})
    google.hosts["sts.googleapis.com"] = lambda request: rejection

    printed = deploy(project, google, GOOGLE_CLOUD_PROJECT="")

    assert printed.startswith("1 ")
    assert "Not deployed: " in printed
    assert reason in printed
    assert "Traceback" not in printed


def test_an_existing_bundle_is_not_uploaded_twice(
    project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.states = [active("new")]
    deploy(project, google)
    before = dict(cloud.stored)
    cloud.states = [active("newer")]

    assert deploy(project, google).startswith("0 ")
    assert cloud.stored == before


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (
            active("old", stateMessages=[{"severity": "ERROR", "message": "No matching version."}]),
            "The previous version keeps serving requests. No matching version.",
        ),
        (
            {"state": "FAILED", "stateMessages": [{"severity": "ERROR", "message": "No port."}]},
            "The function serves no requests. No port.",
        ),
    ],
)
def test_a_failed_build_is_an_error_that_says_which_version_serves(
    state: dict[str, Any], says: str, project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.states = [state]

    printed = deploy(project, google)

    assert printed.startswith("1 ")
    assert f"Not deployed: {says}" in printed


def test_a_request_is_retried_after_a_server_error(
    project: Path, google: Google, cloud: Cloud
) -> None:
    responses = iter([Response(503), Response(500), Response(429)])
    google.hosts["cloudfunctions.googleapis.com"] = lambda request: (
        next(responses, None) or cloud.functions(request)
    )
    cloud.states = [active("new")]

    assert deploy(project, google).startswith("0 ")


def test_an_error_of_google_is_shown(project: Path, google: Google, cloud: Cloud) -> None:
    message = "Permission 'cloudfunctions.functions.update' denied."
    cloud.rejection = Response(403, {"error": {"message": message}})

    assert f"Not deployed: {message}" in deploy(project, google)


def test_missing_settings_are_reported(project: Path, google: Google) -> None:
    assert deploy(project, google, "prod").startswith(
        "0 Skipped: CI cannot deploy to prod, because"
    )
    assert "not ID_TOKEN. See infra/README.md" in deploy(
        project, google, **{**GITLAB, "ID_TOKEN": ""}
    )
    assert "no environment 'staging' in infra/environments. There are: nprod, prod." in deploy(
        project, google, "staging"
    )
    google.settings |= {"NO_GCE_CHECK": "true", "GCE_METADATA_HOST": "", "GCE_METADATA_IP": ""}
    printed = deploy(project, google, GOOGLE_APPLICATION_CREDENTIALS="")
    assert printed.startswith("1 ")
    assert "You are not logged in to Google Cloud. Run: gcloud auth application-def" in printed
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

    run("uv", "sync", cwd=project)  # before the proxy is set, which has no packages
    printed = deploy(project, google)

    assert (
        f"Could not parse infra/environments/nprod.tfvars: syntax error in line {line}." in printed
    )


@pytest.mark.parametrize("recipe", ["bootstrap", "plan", "deploy", "destroy", "settings"])
def test_recipes_for_terraform_need_terraform_and_an_environment(
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
def test_without_a_login_terraform_only_validates(
    recipe: str, project: Path, tmp_path: Path
) -> None:
    initialize(project / "infra")
    logged_out = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}

    printed = fail("uv", "run", "just", recipe, "nprod", cwd=project, env=logged_out)

    assert "Built the bundles in build/ and validated infra/. Skipped the rest." in printed
    assert "gcloud auth application-default login" in printed


@pytest.mark.parametrize("recipe", ["bootstrap", "settings"])
def test_recipes_that_need_a_login_say_so(recipe: str, project: Path, tmp_path: Path) -> None:
    require_program("terraform")
    logged_out = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}

    printed = fail("uv", "run", "just", recipe, "nprod", cwd=project, env=logged_out)

    assert f"{recipe}: You are not logged in to Google Cloud. Run: gcloud auth" in printed
