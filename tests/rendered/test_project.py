"""Rendered projects are sound, and pass their own checks and tests, whatever the answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from checks import ANSWERS_FILE, assert_sound, contents
from conftest import ANSWER_SETS, TEMPLATE, Render, Workshop, run

# Each has something that the others lack: no answers, short names, long names, names of other parts
# of the project, signs that mean something to shells, YAML, TOML or Markdown, nothing but the
# project itself, Cloud Run jobs, and nothing else than jobs.
RUN_WHOLE = (
    "booleans",
    "defaults",
    "jobs",
    "jobs_alone",
    "longest",
    "lookalikes",
    "punctuation",
    "shortest",
)

# These differ in names alone. The tests of the package and of the lake, which take minutes, do not
# depend on any.
DIFFER_IN_NAMES = ("booleans", "longest", "lookalikes", "punctuation", "shortest")

WITH_A_SECOND_FUNCTION = "shortest"


def read_answers(name: str) -> dict[str, Any]:
    answers: dict[str, Any] = yaml.safe_load(
        (TEMPLATE / "tests" / "template" / "answers" / f"{name}.yml").read_text()
    )
    return answers


@pytest.fixture(scope="module")
def defaults(project: Path) -> Mapping[str, Any]:
    """The answers of a project that got nothing but defaults."""
    kept = yaml.safe_load((project / ANSWERS_FILE).read_text())
    return {name: answer for name, answer in kept.items() if not name.startswith("_")}


@pytest.mark.parametrize("name", [path.stem for path in ANSWER_SETS])
def test_a_rendered_project_is_sound(
    name: str, defaults: Mapping[str, Any], render: Render
) -> None:
    answers = read_answers(name)

    assert_sound(render(answers), answers, defaults)


@pytest.mark.parametrize("name", RUN_WHOLE)
def test_a_project_passes_its_own_checks_and_tests(
    name: str, render: Render, workshop: Workshop
) -> None:
    project = workshop(render(read_answers(name)))
    if name == WITH_A_SECOND_FUNCTION:
        run("uv", "run", "just", "add-function", "reports", cwd=project)
    before = without_locks(project)
    check, test = "uv run just check", "uv run just test"
    assert checks_in_ci(project) in ((check, test), None)
    own_tests = [
        "uv run --directory cloud_function pytest tests --ignore=tests/test_lake.py",
        "uv run --directory orchestrator pytest tests",
    ]

    tests = own_tests if name in DIFFER_IN_NAMES else [test]
    for command in (check, *tests, "uv run just fix"):
        run(*command.split(), cwd=project)

    assert without_locks(project) == before


def without_locks(project: Path) -> dict[str, str]:
    return {path: text for path, text in contents(project).items() if not path.endswith("uv.lock")}


def checks_in_ci(project: Path) -> tuple[str, ...] | None:
    """What continuous integration runs first, or None where there is none."""
    github, gitlab = project / ".github" / "workflows" / "ci.yml", project / ".gitlab-ci.yml"
    if github.exists():
        steps = yaml.safe_load(github.read_text())["jobs"]["check"]["steps"]
        return tuple(step["run"] for step in steps if "run" in step)
    if gitlab.exists():
        return tuple(yaml.safe_load(gitlab.read_text())["check"]["script"])
    return None


def test_an_unknown_or_hidden_answer_is_rejected(render: Render) -> None:
    for name in ("project_nam", "project_slug", "_subdirectory"):
        with pytest.raises(ValueError, match=name):
            render({name: "anything"})
