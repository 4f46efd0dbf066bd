"""A project with a second function."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Render, Workshop, fail, replaced, run
from dev import FUNCTION_STARTED, PATIENCE, Dev, running_dev

TASK = '''"""A report."""

import os

import humanize
from dagster_pipes import PipesContext

from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    """Report the secret, in words of a package that only this function has."""
    pipes.report_asset_materialization(
        metadata={"secret": os.environ["API_KEY"], "text": humanize.intword(1_000_000)}
    )
'''
DEFINITION = """type: gcp_pipes.components.CloudFunctionAsset

attributes:
  assets:
    - key: {name}
  task: {name}
"""
CRASH = '''"""A crash."""

import os
from typing import Any


def run(pipes: Any, event: Any) -> None:
    """End the process of the function."""
    os._exit(7)
'''
SLOW = '''"""A task that takes its time."""

import time
from typing import Any


def run(pipes: Any, event: Any) -> None:
    """Wait."""
    print("slow has started")
    time.sleep(15)
    pipes.report_asset_materialization()
'''


def add_asset(project: Path, name: str, task: str, function: str) -> None:
    """Add an asset, and the task that materializes it."""
    (project / function / "tasks" / f"{name}.py").write_text(task)
    definition = DEFINITION.format(name=name)
    if function != "cloud_function":
        definition += f"  function: {function}\n"
    [defs] = project.glob("orchestrator/src/*/defs")
    (defs / name).mkdir()
    (defs / name / "defs.yaml").write_text(definition)


@pytest.fixture(scope="module")
def project(render: Render, workshop: Workshop) -> Path:
    """A project with the function `reports`, which has a package and a secret of its own."""
    project = workshop(render())
    run("uv", "run", "just", "add-function", "reports", cwd=project)
    run("uv", "add", "humanize>=4", cwd=project / "reports")
    (project / "reports" / ".env").write_text("API_KEY=sesame\n")
    add_asset(project, "monthly", TASK, "reports")
    return project


def test_an_asset_is_materialized_by_the_function_that_it_names(project: Path) -> None:
    printed = run("uv", "run", "just", "materialize", "monthly", cwd=project).stdout

    assert "sesame" in printed
    assert "1.0 million" in printed
    assert "humanize" not in (project / "cloud_function" / "uv.lock").read_text()


def test_a_task_of_the_second_function_runs_in_the_terminal(project: Path) -> None:
    printed = run("uv", "run", "just", "function=reports", "task", "monthly", cwd=project).stdout

    assert "sesame" in printed


def test_a_task_of_an_unknown_function_is_an_error(project: Path) -> None:
    printed = fail("uv", "run", "just", "function=nope", "task", "monthly", cwd=project)

    assert "There is no function nope/." in printed


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("Monthly-Reports", "'Monthly-Reports' cannot be the name of a function."),
        ("a" * 21, "cannot be the name of a function."),
        ("../elsewhere", "'../elsewhere' cannot be the name of a function."),
        ("reports", "The name reports is taken. Choose another one."),
        ("infra", "The name infra is taken. Choose another one."),
        ("build", "The name build is taken. Choose another one."),
    ],
)
def test_a_name_that_is_impossible_or_taken_is_an_error(
    name: str, error: str, project: Path
) -> None:
    before = sorted(project.iterdir())

    assert error in fail("uv", "run", "just", "add-function", name, cwd=project)
    assert sorted(project.iterdir()) == before


def test_a_function_that_does_not_exist_is_an_error(project: Path) -> None:
    [definition] = project.glob("orchestrator/src/*/defs/monthly/defs.yaml")

    with replaced(definition, "function: reports", "function: report"):
        printed = fail("uv", "run", "just", "materialize", "monthly", cwd=project)

    assert "There is no function 'report' that Dagster can call: FUNCTION_URL_REPORT" in printed
    assert "it needs a folder report/" in printed


def test_a_task_that_the_function_lacks_is_an_error_in_yaml(project: Path) -> None:
    [definition] = project.glob("orchestrator/src/*/defs/monthly/defs.yaml")

    with replaced(definition, "task: monthly", "task: people"):
        printed = fail("uv", "run", "just", "dg", "check", "defs", "--no-check-yaml", cwd=project)

    assert "There is no task 'people' in reports/tasks/. The tasks are: monthly, ping." in printed


@pytest.fixture(scope="module")
def dev(project: Path) -> Iterator[Dev]:
    """A running `just dev`, whose functions have a task that waits and one that crashes."""
    add_asset(project, "slow", SLOW, "cloud_function")
    add_asset(project, "crash", CRASH, "reports")
    with running_dev(project) as dev:
        yield dev


def test_a_function_that_dies_ends_its_own_calls_only(dev: Dev) -> None:
    runs: dict[str, Any] = {}
    slow = threading.Thread(target=lambda: runs.update(slow=dev.launch("slow")))
    slow.start()
    dev.eventually(lambda: "slow has started" in dev.printed)

    crashed = dev.launch("crash")
    slow.join(PATIENCE)

    assert crashed["status"] == "FAILURE"
    assert "The function ended: its process exited with code 7" in str(crashed["events"])
    reported = "The function reports ended: its process exited with code 7"
    dev.eventually(lambda: reported in dev.printed)
    assert runs["slow"]["status"] == "SUCCESS"


def test_an_edit_restarts_only_the_function_that_was_edited(dev: Dev) -> None:
    task = dev.project / "reports" / "tasks" / "monthly.py"
    text = task.read_text()
    restarted = "The function reports was edited: restarting  "

    task.write_text(text.replace("import os\n", 'import os\n\nprint(os.environ["API_KEY"])\n'))

    dev.eventually(lambda: dev.printed.count(restarted) == 1)
    dev.materialize("monthly")
    assert "sesame\n" in dev.printed
    (dev.project / "reports" / ".env").write_text("API_KEY=abracadabra\n")
    dev.eventually(lambda: dev.printed.count(restarted) == 2)
    dev.materialize("monthly")
    assert "abracadabra\n" in dev.printed
    assert FUNCTION_STARTED not in dev.printed


def test_a_new_function_needs_a_restart_of_dev(dev: Dev) -> None:
    (dev.project / "later" / "tasks").mkdir(parents=True)
    (dev.project / "later" / "tasks" / "__init__.py").touch()
    try:
        dev.eventually(lambda: "New: later. Restart `just dev` to serve it." in dev.printed)
    finally:
        shutil.rmtree(dev.project / "later")
