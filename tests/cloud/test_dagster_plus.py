"""Dagster+ loads the image of the code location, in the deployment or the branch deployment."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Render, end, git, moved, run

NAME = "europe-west4-docker.pkg.dev/my-gcp-project/my-data-platform/orchestrator"
ADDRESS = f"{NAME}@sha256:{'a' * 64}"
PULL_REQUEST = {
    "action": "opened",
    "repository": {"full_name": "acme/platform"},
    "pull_request": {
        "number": 7,
        "state": "open",
        "html_url": "https://github.com/acme/platform/pull/7",
        "head": {"sha": "c" * 40, "ref": "my-feature"},
    },
}

# The image exists; test_job_deployment.py tests how one is built.
DEPLOY = f"""
import contextlib, sys
from deployment import dagster_plus
dagster_plus.deployer_api = contextlib.nullcontext
dagster_plus.orchestrator_image = lambda api, environment: "{ADDRESS}"
sys.exit(dagster_plus.run_deployment(dagster_plus.deploy))
"""


@dataclass
class DagsterPlus:
    """A stand-in for Dagster+.

    Attributes:
        url: Its address.
        error: Why the code location does not load; None if it does.
        documents: The code locations that were deployed, by deployment.
        branches: The changes of branch deployments, in turn.
        tokens: All tokens that it received.
    """

    url: str = ""
    error: str | None = None
    documents: dict[str, Any] = field(default_factory=dict)
    branches: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def respond(self, deployment: str, query: str, variables: dict[str, Any]) -> object:
        """The data that a query of the CLI asks for."""
        match re.findall(r"(?:query|mutation) (\w+)", query):
            case ["CliOrganizationSettings"]:
                return {"organizationSettings": {"settings": {}}}
            case ["CliCreateOrUpdateBranchDeployment"]:
                self.branches.append(variables)
                made = {"__typename": "DagsterCloudDeployment", "deploymentName": "a1b2c3"}
                return {"createOrUpdateBranchDeployment": made}
            case ["CliDeployLocations"]:
                [self.documents[deployment]] = variables["document"]["locations"]
                done = {"__typename": "DeployLocationsSuccess", "locations": []}
                return {"deployLocations": done}
            case ["DeploymentInfoQuery"]:
                return {"currentDeployment": {"agentType": "HYBRID"}}
            case ["CliAgentStatus"]:
                return {"agents": [{"status": "RUNNING"}]}
            case _ if "locationEntries" in query:
                found: dict[str, object] = {"__typename": "RepositoryLocation"}
                if self.error:
                    error = {"message": self.error, "stack": [], "errorChain": []}
                    found = {"__typename": "PythonError", **error}
                state = {"loadStatus": "LOADED", "locationOrLoadError": found}
                entry = {"name": "orchestrator", **state}
                workspace = {"__typename": "Workspace", "locationEntries": [entry]}
                return {"workspaceOrError": workspace}
            case _:
                return {}


@pytest.fixture
def plus() -> Iterator[DagsterPlus]:
    """Dagster+."""
    plus = DagsterPlus()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            plus.tokens.add(self.headers["Dagster-Cloud-Api-Token"])
            deployment = self.path.removesuffix("/graphql").removeprefix("/")
            data = plus.respond(deployment, request["query"], request.get("variables") or {})
            content = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    plus.url = f"http://127.0.0.1:{server.server_port}"
    yield plus
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project for Dagster+, in a git repository, with an environment for branch deployments."""
    project = render({"orchestrator": "dagster_plus"})
    environments = project / "infra" / "environments"
    variables = (environments / "nprod.tfvars").read_text()
    ids = '\ngit_repository = { id = "1", owner_id = "2" }\n'
    (environments / "nprod.tfvars").write_text(variables + ids)
    branches = variables.replace('"push"', '"pull_request"')
    (environments / "branches.tfvars").write_text(branches + ids)
    run("uv", "lock", cwd=project / "orchestrator")
    run("uv", "run", "just", "instance", cwd=project)
    git("init", "--quiet", cwd=project)
    git("add", ".", cwd=project)
    git("commit", "--quiet", "--message=Change it", cwd=project)
    return project


def deploy(
    project: Path, environment: str, variables: Mapping[str, str], **more: str
) -> tuple[int, str]:
    """Run `just deploy-dagster` with an image that exists."""
    home = str(project / ".local" / "dagster_home")
    command = ("uv", "run", "python", "-c", DEPLOY, environment)
    return end(*command, cwd=project, env={"DAGSTER_HOME": home, **variables, **more})


def settings(plus: DagsterPlus) -> dict[str, str]:
    """The variables of an environment in CI."""
    return {
        "CI": "true",
        "GITHUB_ACTION": "",
        "GITLAB_CI": "",
        "DAGSTER_CLOUD_API_TOKEN": "a-token",
        "DAGSTER_CLOUD_DEPLOYMENT": "staging",
        "DAGSTER_CLOUD_ORGANIZATION": "acme",
        "DAGSTER_CLOUD_URL": plus.url,
    }


def on_github(plus: DagsterPlus, folder: Path) -> dict[str, str]:
    """The variables of a workflow run for a pull request."""
    (folder / "event.json").write_text(json.dumps(PULL_REQUEST))
    return {
        **settings(plus),
        "GITHUB_ACTION": "run",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_SHA": "d" * 40,
        "GITHUB_REPOSITORY": "acme/platform",
        "GITHUB_RUN_ID": "1",
        "GITHUB_EVENT_PATH": str(folder / "event.json"),
        "GITHUB_TOKEN": "",
    }


def test_dagster_plus_loads_the_image_from_the_registry_of_the_environment(
    project: Path, plus: DagsterPlus
) -> None:
    status, printed = deploy(project, "nprod", settings(plus))

    assert status == 0, printed
    assert "Agent synced changes to orchestrator" in printed
    assert plus.documents.keys() == {"staging"}
    document = plus.documents["staging"]
    assert (document["location_name"], document["image"]) == ("orchestrator", ADDRESS)
    assert document["code_source"] == {"module_name": "my_data_platform.definitions"}
    assert document["container_context"] == {"k8s": {"service_account_name": "orchestrator"}}
    assert (plus.branches, plus.tokens) == ([], {"a-token"})


def test_a_pull_request_changes_its_branch_deployment_and_an_error_fails_it(
    project: Path, plus: DagsterPlus, tmp_path: Path
) -> None:
    plus.error = "ModuleNotFoundError: No module named 'pandas'"

    status, printed = deploy(project, "branches", on_github(plus, tmp_path))

    assert status == 1
    assert "No module named 'pandas'" in printed
    assert "Not deployed: `dagster-cloud ci deploy` failed: see above." in printed
    assert "Traceback" not in printed
    assert plus.documents.keys() == {"a1b2c3"}
    [change] = plus.branches
    assert change["baseDeploymentName"] == "staging"
    assert change["branchData"]["branchName"] == "my-feature"
    assert change["branchData"]["pullRequestStatus"] == "OPEN"
    assert change["commit"]["commitHash"] == "c" * 40


def test_a_closed_pull_request_closes_its_branch_deployment(
    project: Path, plus: DagsterPlus, tmp_path: Path
) -> None:
    variables = on_github(plus, tmp_path)

    run("uv", "run", "just", "close-branch", "branches", cwd=project, env=variables)

    [change] = plus.branches
    assert change["branchData"]["pullRequestStatus"] == "CLOSED"
    assert change["branchData"]["branchName"] == "my-feature"


def test_what_is_not_set_is_reported(project: Path, plus: DagsterPlus) -> None:
    variables = settings(plus)

    status, printed = deploy(project, "nprod", variables, DAGSTER_CLOUD_DEPLOYMENT="")
    assert (status, "Skipped: nprod has no deployment in Dagster+" in printed) == (0, True)

    none = {"DAGSTER_CLOUD_API_TOKEN": "", "DAGSTER_CLOUD_ORGANIZATION": ""}
    status, printed = deploy(project, "nprod", variables, **none)
    assert status == 1
    assert "DAGSTER_CLOUD_ORGANIZATION and DAGSTER_CLOUD_API_TOKEN must be set" in printed
    assert plus.tokens == set()


def test_a_missing_build_yaml_is_an_error(project: Path, plus: DagsterPlus) -> None:
    with moved(project / "orchestrator" / "build.yaml"):
        status, printed = deploy(project, "nprod", settings(plus))

    assert status == 1
    assert "Not deployed: orchestrator/build.yaml, which has the registry of" in printed
    assert "Traceback" not in printed
