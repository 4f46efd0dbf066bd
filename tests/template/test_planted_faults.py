"""Faults that are planted in a copy of the template are found, each by its own check."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import checks
import pytest
from conftest import TEMPLATE, Render, copy_working_tree, replace
from jinja2 import UndefinedError


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A copy of this template, to be spoilt."""
    copy_working_tree(tmp_path)
    return tmp_path


def in_files(check: Callable[[Mapping[str, str]], None]) -> Callable[[Path], None]:
    return lambda project: check(checks.contents(project))


def unrendered_expression(template: Path) -> None:
    """The file lacks the suffix by which Copier knows what to render."""
    (template / "template" / "NOTES.md").write_text("# {{ project_name }}\n")


def trailing_blank(template: Path) -> None:
    replace(template / "template" / "ruff.toml", "line-length = 100\n", "line-length = 100 \n")


def name_that_windows_refuses(template: Path) -> None:
    (template / "template" / "aux.md").write_text("# Auxiliary\n")


def malformed_file(template: Path) -> None:
    replace(template / "template" / "ruff.toml", "line-length = 100\n", "line-length = \n")


def file_of_an_unknown_kind(template: Path) -> None:
    (template / "template" / "notes.rst").touch()


def default_in_place_of_an_answer(template: Path) -> None:
    env_example = template / "template" / "orchestrator" / ".env.example.jinja"
    replace(env_example, "gs://{{ lake_bucket }}", "gs://my-gcp-project-data-lake")


def path_of_the_template(template: Path) -> None:
    replace(template / "template" / "ruff.toml", "line-length", f"# {TEMPLATE}\nline-length")


def unowned_file(template: Path) -> None:
    (template / "template" / "NOTES.md").write_text("# Notes\n")


def formatting_fault(template: Path) -> None:
    replace(template / "template" / "{{tasks_folder}}" / "main.py", '"version.txt"', "'version.txt'")


def unused_import(template: Path) -> None:
    main = template / "template" / "{{tasks_folder}}" / "main.py"
    replace(main, "import functools\n", "import functools\nimport json\n")


Plant = Callable[[Path], None]
Check = Callable[[Path], None]
FAULTS: list[tuple[Plant, Check, str]] = [
    (unrendered_expression, in_files(checks.assert_clean), "unrendered: NOTES.md"),
    (trailing_blank, in_files(checks.assert_clean), "trailing blank: ruff.toml"),
    (name_that_windows_refuses, in_files(checks.assert_clean), "Windows refuses the name aux.md"),
    (malformed_file, in_files(checks.assert_parses), "ruff.toml does not parse"),
    (file_of_an_unknown_kind, in_files(checks.assert_parses), "no parser for notes.rst"),
    (unowned_file, in_files(checks.assert_owned), "no owner of .*NOTES.md"),
    (formatting_fault, checks.assert_formatted, "1 file would be reformatted"),
    (unused_import, checks.assert_formatted, "`json` imported but unused"),
]


@pytest.mark.parametrize(
    ("plant", "check", "finding"), FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_planted_fault_is_found(
    plant: Plant, check: Check, finding: str, template: Path, render: Render
) -> None:
    check(render(template=template))

    plant(template)

    with pytest.raises(AssertionError, match=finding):
        check(render(template=template))


@pytest.mark.parametrize("plant", [default_in_place_of_an_answer, path_of_the_template])
def test_a_leak_is_found(plant: Plant, template: Path, render: Render) -> None:
    defaults = {"lake_bucket": "my-gcp-project-data-lake"}
    answers: dict[str, Any] = {"lake_bucket": "another-lake"}
    checks.assert_nothing_leaked(checks.contents(render(answers, template)), defaults)

    plant(template)

    with pytest.raises(AssertionError, match="what was not answered"):
        checks.assert_nothing_leaked(checks.contents(render(answers, template)), defaults)


def test_an_answer_that_is_not_stored_is_found(template: Path, render: Render) -> None:
    answers = {"region": "us-east1"}
    checks.assert_answered(checks.contents(render(answers, template)), answers)

    replace(
        template / "copier.yml",
        "\nregion:\n  type: str\n",
        "\nregion:\n  secret: true\n  type: str\n",
    )

    with pytest.raises(KeyError, match="region"):
        checks.assert_answered(checks.contents(render(answers, template)), answers)


def test_a_typo_in_the_name_of_a_question_is_found(template: Path, render: Render) -> None:
    replace(template / "copier.yml", "\nregion:\n", "\nregoin:\n")

    with pytest.raises(ValueError, match="Not questions that are asked: region"):
        render({"region": "us-east1"}, template)
    with pytest.raises(ValueError, match="question 'regoin'"):
        render(template=template)


def test_a_typo_in_the_use_of_an_answer_is_found(template: Path, render: Render) -> None:
    env_example = template / "template" / "orchestrator" / ".env.example.jinja"
    replace(env_example, "--region={{ region }}", "--region={{ regoin }}")

    with pytest.raises(UndefinedError, match="'regoin' is undefined"):
        render(template=template)
