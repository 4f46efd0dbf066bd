"""The transport in a rendered project, with the newest and the oldest Dagster that it allows.

The tests themselves are in the folder transport/.
"""

import re
from pathlib import Path

from conftest import FUNCTIONS_AND_JOBS, Render, run, run_transport_tests

# They are about tasks, the lake and the local cloud, or take minutes. The version of Dagster
# makes no difference.
WITHOUT_DAGSTER = ("chaos", "lake", "load", "local_cloud", "other_languages", "unruly_tasks")


def test_the_transport_works_with_the_newest_dagster(render: Render) -> None:
    run_transport_tests(render(FUNCTIONS_AND_JOBS))


def test_the_transport_works_with_the_oldest_dagster(render: Render) -> None:
    project = render(FUNCTIONS_AND_JOBS)
    orchestrator = project / "orchestrator"
    assert pin_dagster(orchestrator / "pyproject.toml") == 6
    assert pin_dagster(project / "packages" / "gcp-pipes" / "pyproject.toml") == 4

    run("uv", "run", "dg", "check", "defs", cwd=orchestrator)
    run("uv", "run", "pytest", cwd=orchestrator)
    run_transport_tests(project, without=WITHOUT_DAGSTER)


def pin_dagster(requirements: Path) -> int:
    """Require the oldest version of each of Dagster's packages; return how many there are."""
    pinned, count = re.subn(
        r'"(dagster[a-z-]*)>=([0-9.]+),<[0-9.]+"', r'"\1==\2"', requirements.read_text()
    )
    requirements.write_text(pinned)
    return count
