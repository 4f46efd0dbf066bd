"""The orchestrator's side in a rendered project, with the oldest Dagster that it allows."""

import re
from pathlib import Path

from conftest import Render, run, run_orchestrator_tests


def test_the_oldest_dagster_gets_all_that_the_function_says(render: Render) -> None:
    project = render()
    orchestrator = project / "orchestrator"
    assert pin_dagster(orchestrator / "pyproject.toml") == 3
    assert pin_dagster(project / "packages" / "gcp-pipes" / "pyproject.toml") == 4

    run("uv", "run", "dg", "check", "defs", cwd=orchestrator)
    run("uv", "run", "pytest", cwd=orchestrator)
    run_orchestrator_tests(project)


def pin_dagster(requirements: Path) -> int:
    """Require the oldest version of each of Dagster's packages; return how many there are."""
    pinned, count = re.subn(
        r'"(dagster[a-z-]*)>=([0-9.]+),<[0-9.]+"', r'"\1==\2"', requirements.read_text()
    )
    requirements.write_text(pinned)
    return count
