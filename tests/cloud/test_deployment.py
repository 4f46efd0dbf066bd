"""New code reaches a function that is deployed, or the old one goes on serving."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Render, end, fail, initialize, replace, run
from google_stand_ins import DAGSTER, Answer, Google, Request, Serve, google_stand_ins

PROVIDER = "projects/1/locations/global/workloadIdentityPools/people-github/providers/github"
FUNCTION = "/v2/projects/my-gcp-project/locations/europe-west4/functions/my-data-platform"


@dataclass
class Cloud:
    """The function, and the bucket of its sources, as Google Cloud would have them.

    Attributes:
        states: What the function is, each time that one looks after its update.
        refusal: What an update is answered, if it is refused.
        stored: The sources by their names.
        requests: Each request.
    """

    states: list[dict[str, Any]] = field(default_factory=list)
    refusal: Answer | None = None
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    function: dict[str, Any] = field(default_factory=lambda: active("old"))
    updates: Iterator[dict[str, Any]] = field(default_factory=lambda: iter(()))

    def storage(self, request: Request) -> Answer:
        """Take an object, unless it exists."""
        self.requests.append(request)
        name = request.query["name"]
        if request.query["ifGenerationMatch"] == "0" and name in self.stored:
            return Answer(412, {"error": {"message": "conditionNotMet"}})
        self.stored[name] = request.content
        return Answer(200, {"name": name})

    def functions(self, request: Request) -> Answer:
        """Describe the function, or begin to update it."""
        self.requests.append(request)
        if request.method == "PATCH":
            if self.refusal is not None:
                return self.refusal
            self.updates = iter(self.states)
            return Answer(200, {"name": "operations/any"})
        self.function = next(self.updates, self.function)
        return Answer(200, self.function)


def active(build: str, **more: Any) -> dict[str, Any]:
    return {"state": "ACTIVE", "buildConfig": {"build": build}, **more}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Stand-ins for Google's servers, reached as from a job of continuous integration."""
    hosts: dict[str, Serve] = {
        "storage.googleapis.com": cloud.storage,
        "cloudfunctions.googleapis.com": cloud.functions,
    }
    with google_stand_ins(tmp_path, *hosts) as google:
        google.others = hosts
        google.settings |= {
            "CI": "true",
            "DEPLOYER_SERVICE_ACCOUNT": DAGSTER,
            "ID_TOKEN": "proof",
            "UV_OFFLINE": "true",  # where the proxy leads, there are no packages
            "WORKLOAD_IDENTITY_PROVIDER": PROVIDER,
        }
        yield google


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project that may be deployed to nprod from elsewhere."""
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
    """Deploy the function; what was printed, with the exit status before it."""
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

    exchange, impersonation = google.asked
    assert exchange.host == "sts.googleapis.com"
    assert exchange.body["subject_token"] == "proof"
    assert exchange.body["audience"] == f"//iam.googleapis.com/{PROVIDER}"
    assert impersonation.path.endswith(f"/{DAGSTER}:generateAccessToken")
    assert {request.bearer for request in cloud.requests} == {"of-an-account"}


def test_a_bundle_that_is_there_is_not_uploaded_twice(
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
            "The previous version goes on serving. No matching version.",
        ),
        (
            {"state": "FAILED", "stateMessages": [{"severity": "ERROR", "message": "No port."}]},
            "The function is not served. No port.",
        ),
    ],
)
def test_a_version_that_cannot_be_built_fails_and_says_what_serves(
    state: dict[str, Any], says: str, project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.states = [state]

    printed = deploy(project, google)

    assert printed.startswith("1 ")
    assert f"Not deployed: {says}" in printed


def test_a_server_that_is_out_of_order_for_a_moment_is_asked_again(
    project: Path, google: Google, cloud: Cloud
) -> None:
    answers = iter([Answer(503), Answer(500), Answer(429)])
    google.others["cloudfunctions.googleapis.com"] = lambda request: (
        next(answers, None) or cloud.functions(request)
    )
    cloud.states = [active("new")]

    assert deploy(project, google).startswith("0 ")


def test_what_google_refuses_is_shown(project: Path, google: Google, cloud: Cloud) -> None:
    message = "Permission 'cloudfunctions.functions.update' denied."
    cloud.refusal = Answer(403, {"error": {"message": message}})

    assert f"Not deployed: {message}" in deploy(project, google)


def test_what_deploys_needs_to_be_known_first(project: Path, google: Google) -> None:
    assert deploy(project, google, "prod").startswith("0 Skipped: nothing may be deployed to prod")
    assert "not ID_TOKEN: infra/README.md" in deploy(project, google, ID_TOKEN="")
    assert "no environment 'staging' in infra/environments: nprod, prod" in deploy(
        project, google, "staging"
    )
    google.settings |= {"NO_GCE_CHECK": "true", "GCE_METADATA_HOST": "", "GCE_METADATA_IP": ""}
    nobody = deploy(project, google, WORKLOAD_IDENTITY_PROVIDER="")
    assert nobody.startswith("1 ")
    assert "Nobody is logged in to Google Cloud: gcloud auth application-default" in nobody
    assert google.asked == []


@pytest.mark.parametrize("recipe", ["bootstrap", "plan", "deploy", "destroy", "settings"])
def test_what_terraform_does_needs_terraform_and_an_environment(
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
def test_without_a_login_terraform_checks_what_it_can(
    recipe: str, project: Path, tmp_path: Path
) -> None:
    initialize(project / "infra")
    nobody = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}

    printed = fail("uv", "run", "just", recipe, "nprod", cwd=project, env=nobody)

    assert "build/function.zip is made and infra/ is valid; the rest was skipped" in printed
    assert "gcloud auth application-default login" in printed


@pytest.mark.parametrize("recipe", ["bootstrap", "settings"])
def test_what_is_nothing_without_a_login_says_so(
    recipe: str, project: Path, tmp_path: Path
) -> None:
    nobody = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}

    printed = fail("uv", "run", "just", recipe, "nprod", cwd=project, env=nobody)

    assert f"{recipe}: Nobody is logged in to Google Cloud: gcloud auth" in printed
