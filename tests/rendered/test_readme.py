"""What the rendered README says works as it is written."""

import json
import re
from pathlib import Path

import pytest
from conftest import JOBS_ALONE, Render, add_second_asset, run


@pytest.fixture(scope="module")
def readme_project(render: Render) -> Path:
    """A project with the second asset that its README adds."""
    project = render()
    add_second_asset(project)
    return project


def test_the_second_asset_of_the_readme_is_materialized(readme_project: Path) -> None:
    shown = run("uv", "run", "just", "demo", cwd=readme_project, env={"COLUMNS": "200"}).stdout

    assert "Counted" in shown
    assert "gs://my-gcp-project-data-lake/cities" in shown


def test_the_second_asset_of_the_readme_passes_the_checks(readme_project: Path) -> None:
    run("uv", "run", "just", "check", cwd=readme_project)


def test_the_second_asset_of_the_readme_follows_the_first(readme_project: Path) -> None:
    listed = run(
        *("uv", "run", "--quiet", "dg", "list", "defs", "--json"),
        cwd=readme_project / "orchestrator",
    ).stdout

    assets = {asset["asset_key"]: asset for asset in json.loads(listed)["assets"]}
    assert assets["cities"]["dependency_keys"] == ["people"]


@pytest.mark.parametrize(
    "answers", [{}, JOBS_ALONE, *({"orchestrator": each} for each in ("vm", "gke", "dagster_plus"))]
)
def test_the_readmes_have_all_recipes(answers: dict[str, object], render: Render) -> None:
    project = render(answers)
    pages = [project / "README.md", project / "infra" / "README.md"]
    named = set(re.findall(r"^ *uv run just ([\w-]+)", "".join(map(Path.read_text, pages)), re.M))
    listed = run("uv", "run", "just", cwd=project).stdout
    recipes = dict(re.findall(r"^ +([\w-]+)(?: [\w*]+(?:=\S*)?)* +# (.+)$", listed, re.M))

    assert named | {"bundle", "dg", "fix", "lint"} == recipes.keys()
    assert all(recipes.values())


@pytest.mark.parametrize("answers", [{}, JOBS_ALONE])
def test_the_paths_of_the_readme_exist(answers: dict[str, object], render: Render) -> None:
    project = render(answers)
    paths = re.findall(
        r"^\| `([^`]+/[^`]*|[^`]+\.py)` \|", (project / "README.md").read_text(), re.M
    )

    assert len(paths) >= 8
    assert [path for path in paths if not (project / path).exists()] == []
