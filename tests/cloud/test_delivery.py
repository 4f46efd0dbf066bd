"""Continuous integration checks each change, and deploys it with no more rights than it needs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TEMPLATE, Render, run

ZIZMOR = ("uv", "tool", "run", "--from=zizmor>=1.32,<2", "zizmor", "--offline", "--pedantic")
CHECKS = ["check", "infra"]
GITHUB: dict[str, dict[str, str]] = {
    "two environments": {},
    "one environment": {"environments": "solo"},
    "three environments": {"environments": "dev, test, live"},
    "no infrastructure": {"iac": "none"},
}


def load(path: Path) -> dict[str, Any]:
    """A YAML file, without YAML's habit of taking `on` for true."""
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
    return [
        load(folder / ".github" / "workflows" / "ci.yml")
        for folder in (TEMPLATE, *(render(answers) for answers in GITHUB.values()))
    ]


def test_each_job_has_a_limit_and_no_right_that_it_does_not_need(render: Render) -> None:
    for workflow in workflows(render):
        assert workflow["permissions"] == {}
        assert workflow["concurrency"]["group"]
        for name, job in workflow["jobs"].items():
            deploys = name.startswith("deploy-")
            rights = {"contents": "read"} | ({"id-token": "write"} if deploys else {})
            assert job["permissions"] == rights
            assert int(job["timeout-minutes"]) <= 60
            for step in job["steps"]:
                if "uses" in step:
                    assert re.search(r"@[0-9a-f]{40}$", step["uses"])
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] == "false"


def test_a_push_deploys_to_the_first_environment_and_a_release_to_the_others_in_turn(
    render: Render,
) -> None:
    expected = {
        "two environments": {"nprod": ("push", CHECKS), "prod": ("release", CHECKS)},
        "one environment": {"solo": ("push", CHECKS)},
        "three environments": {
            "dev": ("push", CHECKS),
            "test": ("release", CHECKS),
            "live": ("release", "deploy-test"),
        },
        "no infrastructure": {},
    }
    for name, answers in GITHUB.items():
        jobs = load(render(answers) / ".github" / "workflows" / "ci.yml")["jobs"]
        deployments = {
            job["environment"]: (job["if"].split("'")[1], job["needs"])
            for key, job in jobs.items()
            if key.startswith("deploy-")
        }
        assert deployments == expected[name]


def test_a_deployment_is_not_broken_off_by_the_next_one(render: Render) -> None:
    jobs = load(render() / ".github" / "workflows" / "ci.yml")["jobs"]

    for environment in ("nprod", "prod"):
        concurrency = jobs[f"deploy-{environment}"]["concurrency"]
        assert concurrency == {"group": f"deploy-{environment}", "cancel-in-progress": "false"}


def test_gitlab_does_the_same(render: Render) -> None:
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


def test_without_infrastructure_nothing_is_deployed(render: Render) -> None:
    assert "deploy" not in (render({"ci": "gitlab", "iac": "none"}) / ".gitlab-ci.yml").read_text()


def test_new_versions_are_taken_after_a_week(render: Render) -> None:
    for folder in (TEMPLATE, render()):
        updates = load(folder / ".github" / "dependabot.yml")["updates"]
        assert {update["package-ecosystem"] for update in updates} == {"github-actions", "uv"}
        assert all(int(update["cooldown"]["default-days"]) >= 7 for update in updates)
