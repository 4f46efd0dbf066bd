"""Rendered projects pass their own tests and checks, whatever the answers."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ANSWER_SETS, Render, run


@pytest.mark.parametrize("answers", ANSWER_SETS, ids=lambda path: path.stem)
def test_a_project_passes_its_own_tests_and_checks(answers: Path, render: Render) -> None:
    project = render(yaml.safe_load(answers.read_text()))

    assert_clean(project)
    before = contents(project)
    run("uv", "run", "just", "test", cwd=project)
    run("uv", "run", "just", "check", cwd=project)
    run("uv", "run", "just", "fix", cwd=project)

    after = {path: text for path, text in contents(project).items() if path.name != "uv.lock"}
    assert after == before


def contents(project: Path) -> dict[Path, str]:
    """All files that git would keep of a project, without those that its .gitignore names."""
    run("git", "init", "--quiet", cwd=project)
    listed = run(
        "git", "ls-files", "--others", "--cached", "--exclude-standard", cwd=project
    ).stdout
    return {project / name: (project / name).read_text() for name in listed.splitlines()}


def assert_clean(project: Path) -> None:
    """Nothing unrendered, nothing unreadable, no trailing space, no name that Windows refuses."""
    for path, text in contents(project).items():
        name = path.relative_to(project).as_posix()
        assert not re.search(r"[<>:\"|?*{}]| $", name), name
        assert not re.search(r"{%|%}|{#|#}", text), name
        if name != "justfile":  # whose own expressions look the same
            assert "{{" not in text, name
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), name
        assert text == "" or text.endswith("\n"), name
        assert not text.endswith("\n\n"), name
        if path.suffix == ".toml":
            tomllib.loads(text)
        if path.suffix in (".yml", ".yaml"):
            yaml.safe_load(text)


def test_an_unknown_or_hidden_answer_is_refused(render: Render) -> None:
    for name in ("project_nam", "project_slug", "_subdirectory"):
        with pytest.raises(ValueError, match=name):
            render({name: "anything"})
