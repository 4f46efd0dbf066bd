"""The orchestrator's side in a rendered project, with the oldest Dagster that it allows."""

import re

from conftest import Render, run, run_orchestrator_tests


def test_the_oldest_dagster_gets_all_that_the_function_says(render: Render) -> None:
    project = render()
    requirements = project / "orchestrator" / "pyproject.toml"
    pinned, count = re.subn(
        r'"(dagster[a-z-]*)>=([0-9.]+),<[0-9.]+"', r'"\1==\2"', requirements.read_text()
    )
    assert count == 5
    requirements.write_text(pinned)

    run("uv", "run", "dg", "check", "defs", cwd=requirements.parent)
    run("uv", "run", "pytest", cwd=requirements.parent)
    run_orchestrator_tests(project)
