"""The table of owners in docs/updates.md tells what Copier does."""

import re
from pathlib import Path

import pytest
import yaml
from checks import ANSWERS_FILE, assert_owned, contents, owners, owning_path
from conftest import FUNCTIONS_AND_JOBS, JOBS_ALONE, TEMPLATE, Render
from jinja2 import Environment

PACKAGE = "my_data_platform"


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project as it is rendered: with none of the files that are made by its use."""
    return render()


def test_every_rendered_file_has_an_owner(project: Path) -> None:
    assert_owned(contents(project))


def test_every_path_in_the_table_is_rendered(project: Path, render: Render) -> None:
    others = ({"ci": "gitlab"}, FUNCTIONS_AND_JOBS, JOBS_ALONE, {"orchestrator": "dagster_plus"})
    names = {*contents(project), *(name for each in others for name in contents(render(each)))}
    used = {owning_path(name, PACKAGE) for name in names}

    assert used == owners().keys()


def test_the_table_names_known_owners() -> None:
    assert set(owners().values()) == {"you", "both", "template", "Copier"}
    assert owners()[ANSWERS_FILE] == "Copier"


@pytest.mark.parametrize("operation", ["copy", "update"])
def test_your_files_are_rendered_once(operation: str) -> None:
    configuration = yaml.safe_load((TEMPLATE / "copier.yml").read_text())
    yours = {path for path, owner in owners().items() if owner == "you"}
    any_folder = re.compile("^(TASKS|orchestrator)(?=/t)|PACKAGE")
    patterns = {f"/{any_folder.sub('*', path)}" for path in yours}

    assert set(configuration["_skip_if_exists"]) == patterns
    *_, exclude = configuration["_exclude"]
    excluded = Environment().from_string(exclude).render(_copier_operation=operation)
    assert set(excluded.split()) == (patterns if operation == "update" else set())
