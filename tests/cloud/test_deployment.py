"""A deployment updates the function's code, or the old version keeps serving requests."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    Render,
    end,
    fail,
    initialize,
    replace,
    replaced,
    require_program,
    run,
    run_with_google,
)
from google_cloud import Cloud, Fault, Function, error
from google_stand_ins import DAGSTER, Google, Request, Response, Serve, google_stand_ins

PROVIDER = "projects/1/locations/global/workloadIdentityPools/people-github/providers/github"
TOKEN_HOST = "pipelines.actions.githubusercontent.com"
FUNCTION = "/v2/projects/my-gcp-project/locations/europe-west4/functions/my-data-platform"


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


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud) -> Iterator[Google]:
    """Stand-ins for Google's servers, with the environment of a job in GitHub Actions."""
    hosts: dict[str, Serve] = {TOKEN_HOST: issue_token, **cloud.hosts()}
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
    printed = deploy(project, google)

    [(name, content)] = cloud.objects.items()
    digest = hashlib.sha256(content).hexdigest()
    assert name == f"{digest}.zip"
    assert content == (project / "build" / "cloud_function.zip").read_bytes()
    assert printed.startswith("0 ")
    assert f"my-data-platform in nprod serves {digest}" in printed
    [update] = cloud.updates()
    assert update.path.partition("?")[0] == FUNCTION
    changed = "buildConfig.source,buildConfig.environmentVariables,labels"
    assert update.query == {"updateMask": changed}
    assert update.body["buildConfig"] == {
        "source": {
            "storageSource": {"bucket": "my-gcp-project-function-sources", "object": name},
        },
        "environmentVariables": {"USER_S": "own", "BUNDLE": digest},
    }
    assert update.body["labels"] == {"team": "data", "bundle": digest[:63]}


def test_a_bundle_that_is_deployed_is_not_deployed_again(
    project: Path, google: Google, cloud: Cloud
) -> None:
    deploy(project, google)

    printed = deploy(project, google)

    assert printed.startswith("0 ")
    assert "my-data-platform in nprod already serves " in printed
    assert len(cloud.updates()) == 1


def test_an_older_commit_rolls_back(project: Path, google: Google, cloud: Cloud) -> None:
    deploy(project, google)
    [old] = cloud.objects
    main = project / "cloud_function" / "main.py"
    first_line = main.read_text().partition("\n")[0]
    with replaced(main, first_line, f"# Newer.\n{first_line}"):
        deploy(project, google)
        assert cloud.functions["my-data-platform"].serves != old

    assert deploy(project, google).startswith("0 ")
    assert cloud.functions["my-data-platform"].serves == old
    assert len(cloud.objects) == 2


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
        paths = [update.path.partition("?")[0] for update in cloud.updates()]
        return [path.rpartition("/")[2] for path in paths]

    cloud.functions["my-data-platform-reports"] = Function()
    printed = deploy(with_reports, google, "nprod", "reports")

    assert "my-data-platform-reports in nprod serves " in printed
    assert updated() == ["my-data-platform-reports"]

    assert deploy(with_reports, google, "nprod", "nope").startswith(
        "1 Not deployed: There is no function 'nope'. The functions are: cloud_function, reports."
    )
    assert updated() == ["my-data-platform-reports"]


@pytest.mark.parametrize("settings", [{}, GITLAB], ids=["github", "gitlab"])
def test_the_deployer_has_no_key(
    settings: dict[str, str], project: Path, google: Google, cloud: Cloud
) -> None:
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


# How each scenario in deployments.py must end: what the deployment says, and what is served then.
NEW, OLD, NOTHING = f"{hashlib.sha256(b'new').hexdigest()}.zip", "old.zip", None
REPAIR = "Run `uv run just deploy nprod`. If that was just done, deploy again in a few minutes"
ENDS: dict[str, tuple[str, str | None]] = {
    "the new code is served": ("deployed", NEW),
    "the new code is served at the first look": ("deployed", NEW),
    "the function was FAILED, and still is at first": ("deployed", NEW),
    "the function was UNKNOWN, and still is at first": ("deployed", NEW),
    "old errors are shown at first": ("deployed", NEW),
    "old errors are shown while it is deployed": ("deployed", NEW),
    "old errors are shown with a new time": ("deployed", NEW),
    "the function is FAILED, and nothing happens": (
        "The function serves no requests. No port. See its logs. To go back, deploy an older",
        NEW,
    ),
    "the function shows old errors, and nothing happens": (
        "The previous version keeps serving requests. Old. Fix the function, and deploy again.",
        NEW,
    ),
    "the build fails": (
        "The previous version keeps serving requests. Build failed: no matching distribution. Fix",
        OLD,
    ),
    "the build fails at once": (
        "The previous version keeps serving requests. Build failed: no matching distribution. Fix",
        OLD,
    ),
    "the new code does not start": (
        "The function serves no requests. The container failed to listen on the port. See its logs",
        NOTHING,
    ),
    "the bundle is deployed already": ("deployed already", NEW),
    "the bundle is deployed already, but failed": ("deployed", NEW),
    "the same code has the same build": ("deployed", NEW),
    "the same build is served at the first look": ("deployed", NEW),
    "other code has no new build": (
        "The deployment did not end within 0 minutes. See the history of Cloud Build, and deploy",
        NEW,
    ),
    "the update gets 503 four times": (
        "It is unknown whether the update has started. Deploy again in a few minutes.",
        OLD,
    ),
    "a proxy responds with a page": ("is no JSON. Is there a proxy? Deploy again.", OLD),
    "the deployment never ends": (
        "The deployment did not end within 0 minutes. See the history of Cloud Build, and deploy",
        NEW,
    ),
    "the update gets 503": ("deployed", NEW),
    "the update gets 503, and has started": ("deployed", NEW),
    "the update gets no response, and has started": ("deployed", NEW),
    "the update gets 429": ("deployed", NEW),
    "another deployment is running": (
        "Another deployment of the function is running. When it has ended, deploy again.",
        OLD,
    ),
    "another deployment is running after 429": (
        "Another deployment of the function is running. When it has ended, deploy again.",
        OLD,
    ),
    "another deployment wins": (
        "Another deployment has replaced this one. Deploy again, when no other one is running.",
        "b" * 63 + ".zip",
    ),
    "the operation can be read": ("deployed", NEW),
    "the operation can be read, and fails": (
        "The previous version keeps serving requests. Build failed: no matching distribution. Fix",
        OLD,
    ),
    "the operation can be read, and the function was FAILED": ("deployed", NEW),
    "a look gets 503 three times": ("deployed", NEW),
    "looks get 503 while it is deployed": ("deployed", NEW),
    "the upload gets 503": ("deployed", NEW),
    "the upload gets no response, and is stored": ("deployed", NEW),
    "the bundle is stored already": ("deployed", NEW),
    "the bundle is stored already, and Google says 403": ("deployed", NEW),
    "the upload is not allowed": (REPAIR, OLD),
    "the deployer has no role yet": (REPAIR, OLD),
    "the update is not allowed": (REPAIR, OLD),
    "the function does not exist": (REPAIR, NOTHING),
    "Google is out of order": (
        "The service is currently unavailable. Deploy again. If it fails again, see infra/README",
        OLD,
    ),
    "no token is issued": ("Google issues no credentials: ('invalid_grant", OLD),
}


DEPLOYMENTS = Path(__file__).with_name("deployments.py")


def run_deployments(project: Path, which: str) -> dict[str, dict[str, Any]]:
    """The results of the deployments in deployments.py, by name."""
    results: dict[str, dict[str, Any]] = json.loads(
        run_with_google(project, "python", str(DEPLOYMENTS), which).splitlines()[-1]
    )
    return results


def test_the_types_of_the_deployments_are_right(project: Path) -> None:
    run_with_google(project, "mypy", str(DEPLOYMENTS))


@pytest.fixture(scope="module")
def scenarios(project: Path) -> dict[str, dict[str, Any]]:
    return run_deployments(project, "scenarios")


def test_each_scenario_is_expected_to_end_somehow(scenarios: dict[str, dict[str, Any]]) -> None:
    assert list(scenarios) == list(ENDS)


@pytest.mark.parametrize("name", ENDS)
def test_whatever_google_does_a_deployment_ends_well_or_says_what_to_do(
    name: str, scenarios: dict[str, dict[str, Any]]
) -> None:
    says, serves = ENDS[name]
    result = scenarios[name]

    assert says in result["says"]
    assert result["serves"] == serves
    if says == "deployed already":
        assert result["updates"] == 0
    if says == "deployed":
        assert result["says"] == "deployed"
        assert result["label"] == NEW[:63]


ADVICE = re.compile("[Dd]eploy again|deploy an older commit|[Rr]un `uv run just deploy")


def test_with_three_transient_faults_a_deployment_ends_well_or_says_what_to_do(
    project: Path,
) -> None:
    results = run_deployments(project, "random")

    assert len(results) >= 300
    for seed, result in results.items():
        if result["says"].startswith("deployed"):
            assert (result["serves"], result["label"]) == (NEW, NEW[:63]), seed
        else:
            assert ADVICE.search(result["says"]), (seed, result)
            # The old version is only lost to new code that does not start.
            if "failed to listen" not in result["says"]:
                assert result["serves"] == result["served_before"], (seed, result)
    assert {"deployed", "deployed already"} < {result["says"] for result in results.values()}


def test_an_error_of_google_is_shown(project: Path, google: Google, cloud: Cloud) -> None:
    message = "Permission 'cloudfunctions.functions.update' denied."
    cloud.faults = [Fault("PATCH", error(403, message))]

    assert f"Not deployed: {message} The function or its bucket" in deploy(project, google)


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
    assert "Set WORKLOAD_IDENTITY_PROVIDER and DEPLOYER_SERVICE_ACCOUNT for its env" in printed
    printed = deploy(project, google, GOOGLE_APPLICATION_CREDENTIALS="", CI="")
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
