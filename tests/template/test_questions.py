"""The questions of `copier copy`, and the answers that it accepts."""

import ast
import keyword
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml
from conftest import MODULES, TEMPLATE, questions, run, source
from jinja2 import Environment, FileSystemLoader

ACCEPTED = {
    "project_name": [
        "x",
        "Zoë’s 2nd_Lake-House v1.5",
        "R&D: C# (50 %)",
        "数据平台",
        "हिन्दी",
        "A" * 60,
    ],
    "package_name": ["x", "my_data_platform", "lake2", "a" * 40],
    "gcp_project_id": ["my-project-123", "abcdef", "a" * 30, "data-platform-prod"],
    "region": ["europe-west4", "us-central1", "northamerica-northeast2", "africa-south1"],
    "lake_bucket": ["my-lake", "abc", "a" * 63, "data.example.com", "0_lake"],
    "messages_bucket": ["my-messages", "abd", "b" * 63, "messages.example.com", "1-a_b"],
    "function_name": ["my-function", "f", "f" * 49, "a1-2"],
    "job_name": ["my-job", "j", "j" * 49, "a1-2"],
    "runs_on": ["[functions]", "[jobs]", "[functions, jobs]"],
    "iac": ["terraform", "none"],
    "environments": ["prod", "nprod, prod", "dev,test,live", "a" * 12, "e1 , e2"],
    "ci": ["github", "gitlab", "none"],
    "orchestrator": ["none", "vm", "gke", "dagster_plus"],
    "editor": ["vscode", "none"],
}
BUCKET_REJECTED = {
    "gs://my-bucket": "lowercase letters",
    "My-Bucket": "lowercase letters",
    "-bucket": "Start and end",
    "my bucket": "lowercase letters",
    "ab": "3 to 63",
    "a" * 64: "3 to 63",
    f"{'a' * 64}.example.com": "up to 63 between",
    "192.168.5.4": "IP address",
    "data..example.com": "next to a dot",
    "goog-bucket": "start with goog",
    "my-g00gle-bucket": "a lookalike",
    "": "lowercase letters",
}
REJECTED: dict[str, dict[str, str]] = {
    "project_name": {
        "": "Enter a name",
        "Lake ": "without spaces at its ends",
        'My "Lake"': "special meaning",
        "C:\\Lake": "special meaning",
        "Lake\nHouse": "control characters",
        "{{ lake }}": "special meaning",
        "A" * 61: "at most 60",
    },
    "package_name": {
        "": "lowercase letters",
        "MyLake": "lowercase letters",
        "my-lake": "underscores",
        "2nd_lake": "Start with a letter",
        "lake_": "do not end with an underscore",
        "lake__house": "single underscores",
        "données": "from a to z",
        "a" * 41: "at most 40",
        "class": "class is taken",
        "aux": "taken by Python, by a package that this project installs, or by Windows",
    },
    "gcp_project_id": {
        "": "6 to 30",
        "short": "6 to 30",
        "a" * 31: "6 to 30",
        "My-Project": "lowercase",
        "1-project": "Start with a letter",
        "my-project-": "do not end with a hyphen",
        "my-google-project": "in a project ID",
        "123456789012": "not the project's name or number",
    },
    "region": {
        "": "Enter a region",
        "eu": "multi-region",
        "europe-west4-a": "not a zone",
        "Europe West": "Enter a region",
    },
    "lake_bucket": BUCKET_REJECTED,
    "messages_bucket": {**BUCKET_REJECTED, "my-gcp-project-data-lake": "bucket of their own"},
    "function_name": {
        "": "at most 49",
        "My-Function": "lowercase",
        "my_function": "hyphens",
        "1-function": "Start with a letter",
        "my-function-": "do not end with a hyphen",
        "f" * 50: "at most 49",
    },
    "job_name": {
        "": "at most 49",
        "my_job": "hyphens",
        "j" * 50: "at most 49",
    },
    "runs_on": {
        "[]": "Choose functions, jobs, or both",
        "[services]": "Invalid choice",
        "[functions, services]": "Invalid choice",
    },
    "iac": {"pulumi": "Invalid choice", "": "Invalid choice", "Terraform ": "Invalid choice"},
    "environments": {
        "": "one or more",
        "nprod, ": "one or more",
        "nprod; prod": "commas",
        "Prod": "lowercase",
        "pre-prod": "lowercase letters and",
        "1st": "starts with a letter",
        "a" * 13: "at most 12",
        "prod, prod": "Duplicate name: prod.",
        "dev, aux": "Do not use aux",
        "on": "Do not use on",
        "google": "Do not use google",
    },
    "ci": {"jenkins": "Invalid choice", "": "Invalid choice", "GitHub ": "Invalid choice"},
    "orchestrator": {"eks": "Invalid choice", "": "Invalid choice", "VM": "Invalid choice"},
    "editor": {"emacs": "Invalid choice", "": "Invalid choice", "VSCode": "Invalid choice"},
}


def answer(folder: Path, **answers: Any) -> None:
    """Answer the questions as `copier copy --data` does, without writing a project."""
    if "job_name" in answers:  # which is asked only without functions
        answers["runs_on"] = ["jobs"]
    copier.run_copy(
        str(TEMPLATE), folder, data=answers, defaults=True, vcs_ref="HEAD", pretend=True, quiet=True
    )


def pairs(answers: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, value) for name, values in answers.items() for value in values]


@pytest.mark.parametrize("name", questions())
def test_each_question_explains_the_answer_and_has_a_default_and_a_validator(
    name: str,
) -> None:
    question = questions()[name]

    assert question["default"]
    assert "choices" in question or question["validator"]
    assert "choices" in question or len(question["help"].splitlines()) >= 2
    # A terminal has 80 columns, and questionary truncates longer lines.
    assert all(len(line) <= 76 for line in question["help"].splitlines())
    assert len(ACCEPTED[name]) >= len(question.get("choices", range(3)))
    assert len(REJECTED[name]) >= 3


@pytest.mark.parametrize(("name", "value"), pairs(ACCEPTED))
def test_a_valid_answer_is_accepted(name: str, value: str, tmp_path: Path) -> None:
    answer(tmp_path, **{name: value})


@pytest.mark.parametrize(("name", "value"), pairs(REJECTED))
def test_an_invalid_answer_is_rejected_with_the_rule(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"'{name}'") as error:
        answer(tmp_path, **{name: value})

    assert REJECTED[name][value] in str(error.value)


@pytest.mark.parametrize("orchestrator", ["vm", "gke", "dagster_plus"])
def test_what_dagster_runs_on_needs_terraform(orchestrator: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'orchestrator'.*Terraform creates what Dagster runs on"):
        answer(tmp_path, orchestrator=orchestrator, iac="none")


def test_each_error_in_a_list_of_environments_is_reported_once(rules: Any) -> None:
    errors = rules.environments_problem("dev, nprod, dev, prod, nprod, dev, aux")

    assert errors.splitlines() == [
        "Duplicate name: dev.",
        "Duplicate name: nprod.",
        "Do not use aux: it has a special meaning in Windows, Google Cloud or YAML.",
    ]


@pytest.mark.parametrize("project_name", ["Class", "JSON", "Dagster", "local-cloud"])
def test_a_project_name_that_suggests_a_rejected_package_name_is_rejected(
    project_name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"question 'package_name'.* is taken"):
        answer(tmp_path, project_name=project_name)


@pytest.fixture(scope="module")
def rules() -> Any:
    """The macros and variables of rules.jinja."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
    )
    return environment.get_template("rules.jinja").make_module()


@pytest.fixture(scope="module")
def taken_package_names(rules: Any) -> set[str]:
    """The names that the package of a project cannot have."""
    return set(rules.taken_package_names)


@pytest.mark.parametrize(
    ("project_name", "package_name"),
    [
        ("My Data Platform", "my_data_platform"),
        ("Zoe's  2nd_Lake-House v1.5", "zoes_2nd_lake_house_v1_5"),
        ("Zoë’s Lake", "zoes_lake"),
        ("Söhne & Töchter", "soehne_toechter"),
        ("So\u0308hne", "soehne"),  # as macOS writes names of files
        ("Straße nach Ærø", "strasse_nach_aeroe"),
        ("Łódź, São Paulo, İzmir", "lodz_sao_paulo_izmir"),
        ("2nd Lake", "nd_lake"),
        ("数据平台", "data_platform"),
        (f"{'A' * 39} Lake", "a" * 39),
    ],
)
def test_a_project_name_suggests_a_package_name(
    project_name: str, package_name: str, rules: Any
) -> None:
    assert rules.package_name_of(project_name) == package_name


def package_names(names: Iterable[str]) -> set[str]:
    """The names that could be derived from a project's name."""
    return {name for name in names if re.fullmatch("[a-z][a-z0-9_]*", name)}


def test_there_are_at_most_thirteen_questions_and_all_have_defaults() -> None:
    either = {"function_name", "job_name"}  # is asked
    assert len(questions().keys() - either) <= 12
    assert all("default" in question for question in questions().values())


def test_names_of_python_modules_are_rejected(taken_package_names: set[str]) -> None:
    python = package_names([*map(str.lower, keyword.kwlist), *sys.stdlib_module_names])

    assert python - taken_package_names == set()


def test_names_of_imported_packages_are_rejected(
    taken_package_names: set[str],
) -> None:
    modules = [ast.parse(source(path)) for path in MODULES]
    nodes = [node for module in modules for node in ast.walk(module)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) if not node.level
    }
    # In other environments than the orchestrator's.
    elsewhere = {
        "deployment",
        "function_settings",
        "hcl2",
        "lake",
        "lark",
        "settings",
        "tasks",
        "werkzeug",
    }

    imported = package_names(name.partition(".")[0] for name in names)
    assert {"dagster", "gcp_pipes", "polars"} <= imported
    assert imported - taken_package_names == elsewhere


def test_copying_needs_no_trust_and_prints_the_next_command(tmp_path: Path) -> None:
    destination = tmp_path / "a project"

    copied = run(
        *("copier", "copy", "--defaults", "--vcs-ref=HEAD", str(TEMPLATE), str(destination)),
        cwd=tmp_path,
    )

    assert f'cd "{destination}"\n    uv run just demo' in copied.stdout
    answers = yaml.safe_load((destination / ".copier-answers.yml").read_text())
    asked = questions().keys() - {"job_name"}
    assert {name for name in answers if not name.startswith("_")} == asked


def test_a_relative_path_of_the_template_becomes_absolute(tmp_path: Path) -> None:
    source = os.path.relpath(TEMPLATE, tmp_path)

    copied = run("copier", "copy", "--defaults", "--vcs-ref=HEAD", source, "project", cwd=tmp_path)

    answers = yaml.safe_load((tmp_path / "project" / ".copier-answers.yml").read_text())
    assert answers["_src_path"] == str(TEMPLATE)
    assert f"Updates come from {TEMPLATE}\n" in copied.stdout


def test_an_answer_given_on_the_command_line_is_used(tmp_path: Path) -> None:
    command = ["copier", "copy", "--defaults", "--vcs-ref=HEAD", "--data=gcp_project_id=other-one"]

    run(*command, str(TEMPLATE), str(tmp_path / "project"), cwd=tmp_path)

    settings = (tmp_path / "project" / "orchestrator" / ".env.example").read_text()
    assert "MESSAGES_BUCKET=other-one-pipes-messages\n" in settings
    assert "LAKE_URI=gs://other-one-data-lake\n" in settings
