"""`just dev` runs Dagster's web page and the local cloud, and reloads after edits."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Render, start
from dev import DEFINITIONS_LOADED, FUNCTION_STARTED, PATIENCE, Dev, running_dev


@pytest.fixture(scope="module")
def dev(render: Render) -> Iterator[Dev]:
    """A project with a running `just dev`."""
    with running_dev(render()) as dev:
        yield dev


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edit_of_the_function_restarts_it(dev: Dev) -> None:
    assert "Cloud function version: development" in dev.materialize("people")

    dev.edit_function("main.py", '"development"', '"edited"')

    assert "Cloud function version: edited" in dev.materialize("people")


def test_an_edit_of_the_package_reloads_the_function_and_the_definitions(dev: Dev) -> None:
    started, loaded = dev.printed.count(FUNCTION_STARTED), dev.printed.count(DEFINITIONS_LOADED)

    with (dev.project / "packages/gcp-pipes/src/gcp_pipes/protocol.py").open("a") as module:
        module.write("\n# edited\n")

    dev.eventually(lambda: dev.printed.count(FUNCTION_STARTED) > started)
    dev.eventually(lambda: dev.printed.count(DEFINITIONS_LOADED) > loaded)


def test_an_edit_of_the_definitions_reloads_them(dev: Dev) -> None:
    [definition] = dev.project.glob("orchestrator/src/*/defs/people.py")

    loaded = dev.printed.count(DEFINITIONS_LOADED)
    edit(definition, '"""Fake people', '"""Invented people')
    dev.eventually(lambda: dev.printed.count(DEFINITIONS_LOADED) > loaded)

    assets = dev.graphql("{ assetNodes { description } }")["assetNodes"]
    assert any(str(asset["description"]).startswith("Invented people") for asset in assets)


def test_an_error_is_reported_and_its_fix_reloads(dev: Dev) -> None:
    main = dev.project / "cloud_function" / "main.py"
    [definition] = dev.project.glob("orchestrator/src/*/defs/people.py")

    for broken in (main, definition):
        edit(broken, "\nimport ", "\nimport no_such_module\nimport ")
    error = "Dagster could not load the definitions."
    dev.eventually(lambda: "No module named" in dev.printed.partition(error)[2])
    dev.eventually(lambda: "Edit it again to restart it" in dev.printed)

    started = dev.printed.count(FUNCTION_STARTED)
    loaded = dev.printed.count(DEFINITIONS_LOADED)
    for broken in (main, definition):
        edit(broken, "\nimport no_such_module\n", "\n")
    dev.eventually(lambda: dev.printed.count(FUNCTION_STARTED) > started)
    # Dagster shows the new definitions before it has replaced the process with the old ones.
    dev.eventually(lambda: dev.printed.count(DEFINITIONS_LOADED) > loaded)

    dev.materialize("people")


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [("deps:", "dep:", 7), ("attributes:", "attribute:", 3)],
    ids=["in attributes", "next to attributes"],
)
def test_an_error_in_yaml_is_reported_by_its_line_and_its_fix_reloads(
    right: str, wrong: str, line: int, dev: Dev
) -> None:
    [definition] = dev.project.glob("orchestrator/src/*/defs/visits/defs.yaml")
    field, meant = wrong.strip(":"), right.strip(":")

    edit(definition, right, wrong)
    dev.eventually(lambda: f"{field} is not a field. Did you mean {meant}?" in dev.printed)
    assert f"defs.yaml:{line}: " in dev.printed
    loaded = dev.printed.count(DEFINITIONS_LOADED)
    edit(definition, wrong, right)
    dev.eventually(lambda: dev.printed.count(DEFINITIONS_LOADED) > loaded)

    # Dagster has no definitions until it has replaced the process that had none.
    dev.eventually(lambda: "visits" in str(dev.graphql("{ assetNodes { assetKey { path } } }")))


def test_the_tables_are_kept_in_the_project(dev: Dev) -> None:
    dev.materialize("people")

    lake = Path(dev.address("Data lake"))
    assert lake.is_relative_to(dev.project)
    assert (lake / "people" / "_delta_log").is_dir()


def test_a_server_that_ends_is_reported_and_stops_everything(dev: Dev) -> None:
    [emulator] = [
        process
        for process in psutil.Process(dev.process.pid).children(recursive=True)
        if process.name().startswith("fake-gcs-server")
    ]

    emulator.kill()

    assert dev.process.wait(60) == 1
    dev.stop()
    assert "Failed: The storage emulator ended" in dev.printed


@pytest.mark.parametrize("settings", ["LAKE_URI=gs://the-real-lake", "FUNCTION_URL=", "LAKE_URI"])
def test_a_lake_without_a_function_to_call_is_rejected(settings: str, render: Render) -> None:
    project = render()
    (project / "orchestrator" / ".env").write_text(settings)

    with start("uv", "run", "just", "dev", cwd=project) as process:
        printed, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == 1
    assert "orchestrator/.env does not name the function to call." in printed
