"""`dg` lists, scaffolds and checks the component in a rendered project.

The component itself, and its errors, are tested in transport/test_component.py.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Render, end, replace, run

COMPONENT = "gcp_pipes.components.CloudFunctionAsset"


@pytest.fixture(scope="module")
def orchestrator(render: Render) -> Path:
    """The Dagster project, with a component that `dg` scaffolded."""
    orchestrator = render() / "orchestrator"
    run("uv", "run", "dg", "scaffold", "defs", COMPONENT, "reports/weekly", cwd=orchestrator)
    return orchestrator


@pytest.fixture
def definition(orchestrator: Path) -> Path:
    """The scaffolded file, in its initial state."""
    file = orchestrator / "src" / "my_data_platform" / "defs" / "reports" / "weekly" / "defs.yaml"
    file.write_text(
        f"type: {COMPONENT}\n\nattributes:\n  assets:\n    - key: weekly\n  task: weekly\n"
    )
    return file


def test_the_component_is_listed(orchestrator: Path) -> None:
    listed = run("uv", "run", "--quiet", "dg", "list", "components", "--json", cwd=orchestrator)

    components = {each["key"]: each["summary"] for each in json.loads(listed.stdout)["items"]}
    assert components[COMPONENT].startswith("One asset, or several, materialized by a call")


def test_the_scaffolded_file_has_one_asset_with_the_requested_name(orchestrator: Path) -> None:
    [file] = (orchestrator / "src").rglob("reports/weekly/defs.yaml")

    assert file.read_text().split("\n\n") == [
        f"type: {COMPONENT}",
        "attributes:\n  assets:\n    - key: weekly\n  task: weekly\n",
    ]
    run("uv", "run", "dg", "check", "yaml", cwd=orchestrator)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("- key: weekly", "- kex: weekly", "defs.yaml:5 - {} attributes.assets.0.kex"),
        ("- key: weekly", "- deps: [a]", "defs.yaml:5 - {} attributes.assets.0 'key' is"),
        ("task: weekly", "timeout: 9999", "defs.yaml:6 - {} attributes.timeout 9999"),
        ("- key: weekly", "- {{key: a, kinds: 3}}", "defs.yaml:5 - {} attributes.assets.0.kinds 3"),
    ],
)
def test_an_error_is_reported_with_its_line_and_field(
    old: str, new: str, place: str, orchestrator: Path, definition: Path
) -> None:
    replace(definition, old, new.format())

    status, printed = end("uv", "run", "dg", "check", "yaml", cwd=orchestrator)

    assert status == 1
    assert place.format(COMPONENT) in printed


def test_the_error_for_an_unknown_task_lists_the_tasks(
    orchestrator: Path, definition: Path
) -> None:
    status, printed = end("uv", "run", "dg", "check", "defs", cwd=orchestrator)

    assert status == 1
    assert f"{definition.name}:6: attributes.task " in printed
    assert "There is no task 'weekly' in cloud_function/tasks/. The tasks are: people, ping" in (
        printed
    )


LOAD = "import dagster as dg, pathlib; dg.load_from_defs_folder(path_within_project=pathlib.Path())"


@pytest.fixture
def file_with_errors(definition: Path) -> Iterator[Path]:
    """Two errors in the scaffolded file; a second file with one error in each of two documents."""
    document = definition.read_text().replace("task: weekly", "task: ping")
    definition.write_text(
        document.replace("- key", "- kinds: polars\n      partition_def: 7\n      key")
    )
    other = definition.parent.parent / "daily" / "defs.yaml"
    other.parent.mkdir(exist_ok=True)
    other.write_text(f"{document}---\n{document}  pol: a\n---\n{document}  timeout: long\n")
    yield other
    other.unlink()


ERRORS = [
    "daily/defs.yaml:14: attributes.pol is not a field. Did you mean pool?",
    "daily/defs.yaml:22: attributes.timeout must be a number of seconds, more than 0 and "
    "up to 3600; it is 'long'.",
    "weekly/defs.yaml:5: attributes.assets.0.kinds must be a list; it is 'polars'.",
    "weekly/defs.yaml:6: attributes.assets.0.partition_def is not a field. Did you mean "
    "partitions_def?",
]


@pytest.mark.parametrize(
    "command",
    [
        ("dg", "check", "defs"),
        ("dg", "check", "defs", "--no-check-yaml"),
        ("dg", "list", "defs"),
        ("python", "-c", LOAD),
        ("--project", "..", "just", "check"),
    ],
    ids=["dg check defs", "without its check of YAML", "dg list defs", "Python", "just check"],
)
def test_the_errors_in_all_files_are_reported_wherever_definitions_are_loaded(
    command: tuple[str, ...], orchestrator: Path, file_with_errors: Path
) -> None:
    status, printed = end("uv", "run", *command, cwd=orchestrator)

    assert status == 1
    places = re.findall(r"/(\w+/defs\.yaml:.*)", printed)
    assert len(places) == len(ERRORS), printed
    for place, error in zip(places, ERRORS, strict=True):
        assert place.startswith(error)


def test_a_misspelled_part_of_a_document_is_reported_with_all_other_errors(
    orchestrator: Path, file_with_errors: Path
) -> None:
    file_with_errors.write_text(file_with_errors.read_text().replace("type: ", "tpye: ", 1))

    status, printed = end("uv", "run", "dg", "check", "defs", "--no-check-yaml", cwd=orchestrator)

    assert status == 1
    assert "daily/defs.yaml:1: tpye is not a field. Did you mean type?" in printed
    assert len(re.findall(r"defs\.yaml:\d+: ", printed)) == 1 + len(ERRORS)
