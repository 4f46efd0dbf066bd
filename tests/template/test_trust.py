"""Copier needs no `--trust` for this template, and no test uses it."""

import re
from pathlib import Path

import copier
import pytest
from conftest import TEMPLATE, Render, commit_all, copy_working_tree, git, run
from copier.errors import UnsafeTemplateError

UNSAFE_FEATURES = {
    "tasks": "_tasks: [echo done]",
    "migrations": '_migrations: [{version: "9999.0", command: echo done}]',
    "jinja_extensions": "_jinja_extensions: [jinja2.ext.do]",
}


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A released copy of this template."""
    template = tmp_path / "template"
    copy_working_tree(template)
    commit_all(template, "A version")
    git("tag", "1.0", cwd=template)
    return template


def add(feature: str, template: Path) -> None:
    with (template / "copier.yml").open("a") as configuration:
        configuration.write(f"\n{feature}\n")
    commit_all(template, "Another version")
    git("tag", "9999.0", cwd=template)


@pytest.mark.parametrize("feature", ["tasks", "jinja_extensions"])
def test_a_copy_of_a_template_that_runs_code_fails(
    feature: str, template: Path, render: Render, tmp_path: Path
) -> None:
    add(UNSAFE_FEATURES[feature], template)

    with pytest.raises(UnsafeTemplateError, match=feature):
        copier.run_copy(str(template), tmp_path / "project", defaults=True, quiet=True)
    with pytest.raises(UnsafeTemplateError, match=feature):
        render(template=template)


@pytest.mark.parametrize("feature", UNSAFE_FEATURES)
def test_an_update_to_a_template_that_runs_code_fails(
    feature: str, template: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    copier.run_copy(str(template), project, defaults=True, quiet=True)
    commit_all(project, "A project")
    add(UNSAFE_FEATURES[feature], template)

    with pytest.raises(UnsafeTemplateError, match=feature):
        copier.run_update(project, defaults=True, overwrite=True, quiet=True)

    assert git("status", "--porcelain", cwd=project) == ""


def test_a_copy_from_the_command_line_needs_no_trust(template: Path, tmp_path: Path) -> None:
    run("copier", "copy", "--defaults", str(template), str(tmp_path / "project"), cwd=tmp_path)


def test_nothing_tells_users_to_trust_the_template() -> None:
    trusting = re.compile(rb"unsafe[\"']?\s*[=:]\s*True|--trust|--UNSAFE|\btrust:")
    listed = git("ls-files", "--cached", "--others", "--exclude-standard", cwd=TEMPLATE).split()
    ours = [TEMPLATE / name for name in listed if TEMPLATE / name != Path(__file__)]

    assert [path for path in ours if path.is_file() and trusting.search(path.read_bytes())] == []
