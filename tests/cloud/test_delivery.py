"""CI checks each change and deploys it, with the least privileges."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FUNCTIONS_AND_JOBS, JOBS_ALONE, TEMPLATE, Render, run

ZIZMOR = ("uv", "tool", "run", "--from=zizmor>=1.32,<2", "zizmor", "--offline", "--pedantic")
EXACT = re.compile(r"\d+\.\d+\.\d+")
GITHUB: dict[str, dict[str, Any]] = {
    "two environments": {},
    "one environment": {"environments": "solo"},
    "three environments": {"environments": "dev, test, live"},
    "no infrastructure": {"iac": "none"},
    "functions and jobs": FUNCTIONS_AND_JOBS,
    "jobs alone": JOBS_ALONE,
    "dagster plus": {"orchestrator": "dagster_plus"},
}


def load(path: Path) -> dict[str, Any]:
    """Read a YAML file as strings, so that the key `on` is not read as true."""
    loaded: dict[str, Any] = yaml.load(path.read_text(), yaml.BaseLoader)
    return loaded


@pytest.mark.parametrize("name", GITHUB)
def test_zizmor_finds_nothing_in_what_is_rendered(name: str, render: Render) -> None:
    printed = run(*ZIZMOR, ".", cwd=render(GITHUB[name])).stdout

    assert "completed ./.github/workflows/ci.yml" in printed
    assert "completed ./.github/dependabot.yml" in printed
    assert "No findings to report" in printed


def test_zizmor_finds_nothing_here() -> None:
    printed = run(*ZIZMOR, ".github", cwd=TEMPLATE).stdout

    assert "completed .github/workflows/ci.yml" in printed
    assert "No findings to report" in printed


def workflows(render: Render) -> list[dict[str, Any]]:
    folders = (TEMPLATE, *(render(answers) for answers in GITHUB.values()))
    return [load(file) for each in folders for file in (each / ".github/workflows").glob("*.yml")]


def test_each_job_has_a_timeout_and_the_least_privileges(render: Render) -> None:
    for workflow in workflows(render):
        assert workflow["permissions"] == {}
        assert workflow["concurrency"]["group"]
        for name, job in workflow["jobs"].items():
            rights = {"contents": "read"} | (
                {"id-token": "write"} if name in ("deploy", "branch") else {}
            )
            assert job["permissions"] == rights
            assert int(job["timeout-minutes"]) <= 60
            for step in job["steps"]:
                if "uses" in step:
                    assert re.search(r"@[0-9a-f]{40}$", step["uses"])
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] == "false"


def deployments(job: dict[str, Any]) -> dict[str, list[str]]:
    """The environments that a job deploys to, by the event that triggers it."""
    environments = job["strategy"]["matrix"]["environment"]
    if isinstance(environments, str):
        found = re.fullmatch(
            r"\${{ fromJSON\(github\.event_name == 'push' && '(.+)' \|\| '(.+)'\) }}", environments
        )
        assert found
        return dict(zip(["push", "release"], map(json.loads, found.groups()), strict=True))
    return {"push": environments}


def test_a_push_deploys_to_the_first_environment_and_a_release_to_the_others_in_turn(
    render: Render,
) -> None:
    expected = {
        "two environments": {"push": ["nprod"], "release": ["prod"]},
        "one environment": {"push": ["solo"]},
        "three environments": {"push": ["dev"], "release": ["test", "live"]},
    }
    for name, by_event in expected.items():
        workflow = load(render(GITHUB[name]) / ".github" / "workflows" / "ci.yml")
        job = workflow["jobs"]["deploy"]
        assert deployments(job) == by_event
        assert {"push", "pull_request"} | by_event.keys() == workflow["on"].keys()
        assert set(re.findall(r"'(\w+)'", job["if"])) == by_event.keys()
        assert job["needs"] == ["check", "infra"]
        assert (job["strategy"]["max-parallel"], job["strategy"]["fail-fast"]) == ("1", "true")
        assert job["environment"] == "${{ matrix.environment }}"


def test_without_infrastructure_nothing_is_deployed(render: Render) -> None:
    github = load(render(GITHUB["no infrastructure"]) / ".github" / "workflows" / "ci.yml")
    gitlab = render({"ci": "gitlab", "iac": "none"}) / ".gitlab-ci.yml"

    assert github["jobs"].keys() == {"check", "audit"}
    assert "deploy" not in gitlab.read_text()


def test_without_infrastructure_the_readme_has_the_command_and_the_roles(render: Render) -> None:
    readme = " ".join((render({"iac": "none"}) / "README.md").read_text().split())

    command = readme.partition("gcloud functions deploy")[2].partition("```")[0]
    assert "--build-service-account=projects/my-gcp-project/serviceAccounts/" in command
    assert {"FUNCTION_TIMEOUT=3600", "THREADS=4"} < set(
        command.partition("--set-env-vars=")[2].strip().split(",")
    )
    assert "--timeout=3600s" in command
    for role in ("logging.logWriter", "artifactregistry.writer", "storage.objectViewer"):
        assert f"`roles/{role}`" in readme.partition("The build account")[2].partition(" You ")[0]


def test_a_newer_run_does_not_cancel_a_deployment(render: Render) -> None:
    job = load(render() / ".github" / "workflows" / "ci.yml")["jobs"]["deploy"]

    group = "deploy-${{ matrix.environment }}"
    assert job["concurrency"] == {"group": group, "cancel-in-progress": "false"}


def test_gitlab_deploys_the_same_way(render: Render) -> None:
    answers = {"ci": "gitlab", "environments": "dev, test, live"}
    pipeline = load(render(answers) / ".gitlab-ci.yml")

    deployments = {name: job for name, job in pipeline.items() if name.startswith("deploy-")}
    assert list(deployments) == ["deploy-dev", "deploy-test", "deploy-live"]
    assert deployments["deploy-dev"]["rules"] == [{"if": '$CI_COMMIT_BRANCH == "main"'}]
    assert deployments["deploy-live"]["rules"] == [{"if": "$CI_COMMIT_TAG"}]
    assert deployments["deploy-live"]["needs"] == ["deploy-test"]
    assert pipeline[".deploy"]["interruptible"] == "false"
    assert pipeline[".deploy"]["resource_group"] == "$CI_ENVIRONMENT_NAME"
    assert pipeline["infra"]["script"] == ["sh infra/check.sh"]


def test_a_pull_request_reaches_only_the_environment_for_branches(render: Render) -> None:
    project = render(GITHUB["dagster plus"])
    workflow = load(project / ".github" / "workflows" / "branch_deployments.yml")
    ci = load(project / ".github" / "workflows" / "ci.yml")

    assert workflow["on"] == {
        "pull_request": {"types": ["opened", "reopened", "synchronize", "closed"]}
    }
    [job] = workflow["jobs"].values()
    assert job["environment"] == "branches"
    assert job["if"].split(" && ") == [
        "vars.BRANCH_DEPLOYMENTS == 'true'",
        "github.event.pull_request.head.repo.full_name == github.repository",
    ]
    assert workflow["concurrency"]["cancel-in-progress"] == "false"
    *_, step = ci["jobs"]["deploy"]["steps"]
    assert step["run"] == 'uv run just deploy-dagster "$ENVIRONMENT"'
    with_secrets = [name for name, each in ci["jobs"].items() if "secrets." in str(each)]
    assert with_secrets == ["deploy"]


def test_gitlab_deploys_branches_the_same_way(render: Render) -> None:
    project = render({"ci": "gitlab", "orchestrator": "dagster_plus"})
    pipeline = load(project / ".gitlab-ci.yml")

    deploy, close = pipeline["deploy-branch"], pipeline["close-branch"]
    environment = "branches/$CI_COMMIT_REF_SLUG"
    assert deploy["environment"] == {"name": environment, "on_stop": "close-branch"}
    assert close["environment"] == {"name": environment, "action": "stop"}
    [rule] = deploy["rules"]
    assert rule["if"].split(" && ") == [
        '$BRANCH_DEPLOYMENTS == "true"',
        '$CI_PIPELINE_SOURCE == "merge_request_event"',
        "$CI_MERGE_REQUEST_SOURCE_PROJECT_ID == $CI_PROJECT_ID",
    ]
    assert close["rules"] == [{**rule, "when": "manual", "allow_failure": "true"}]
    assert "id_tokens" not in close
    assert pipeline[".deploy"]["script"][-1] == 'uv run just deploy-dagster "$CI_ENVIRONMENT_NAME"'


def test_new_versions_are_taken_after_a_week(render: Render) -> None:
    for folder in (TEMPLATE, render(), render(GITHUB["no infrastructure"])):
        updates = load(folder / ".github" / "dependabot.yml")["updates"]
        updated = {update["package-ecosystem"] for update in updates}
        has_terraform = any(folder.rglob("infra/*.tf"))
        assert updated == {"github-actions", "uv"} | ({"terraform"} if has_terraform else set())
        assert all(int(update["cooldown"]["default-days"]) >= 7 for update in updates)


def test_programs_and_images_are_pinned_to_a_version(render: Render) -> None:
    for workflow in workflows(render):
        for step in (step for job in workflow["jobs"].values() for step in job["steps"]):
            if "setup-uv" in step.get("uses", ""):
                assert EXACT.fullmatch(step["with"]["version"])
            if "setup-terraform" in step.get("uses", ""):
                assert EXACT.fullmatch(step["with"]["terraform_version"])

    pipeline = load(render({"ci": "gitlab"}) / ".gitlab-ci.yml")
    images = [pipeline["default"]["image"], pipeline["infra"]["image"]["name"]]
    assert all(EXACT.fullmatch(image.partition(":")[2]) for image in images)
    assert pipeline[".uv"]["before_script"] == ["pip install --quiet uv==0.13.9"]


def test_each_lock_file_is_searched_for_known_vulnerabilities(render: Render) -> None:
    github, gitlab = render(), render({"ci": "gitlab"})

    [audit] = (
        step["run"]
        for step in load(github / ".github" / "workflows" / "ci.yml")["jobs"]["audit"]["steps"]
        if "run" in step
    )
    assert audit == "uv run just audit"
    assert load(gitlab / ".gitlab-ci.yml")["audit"]["script"] == [audit]
    printed = run("uv", "run", "just", "--show", "audit", cwd=github).stdout
    audited = re.findall(r"uv audit --locked(?: --directory (\S+))?", printed)
    assert audited == ["", "orchestrator", '"${tasks%/tasks/*}"']


def test_the_audience_of_gitlab_s_tokens_depends_on_no_variable_of_an_environment(
    render: Render,
) -> None:
    project = render({"ci": "gitlab"})

    token = load(project / ".gitlab-ci.yml")[".deploy"]["id_tokens"]["ID_TOKEN"]

    assert token == {"aud": "$CI_SERVER_URL"}
    assert "allowed_audiences = [var.gitlab_url]" in (project / "infra/federation.tf").read_text()
