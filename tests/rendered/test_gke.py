"""Dagster on Google Kubernetes Engine, with a stand-in for the Kubernetes API."""

from pathlib import Path

import pytest
from conftest import TEMPLATE, Render, as_user, run

TESTS = TEMPLATE / "tests" / "kubernetes"
ENVIRONMENT = ("uv", "run", "--group=local-production", "--with=types-pyyaml")


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    return render({"orchestrator": "gke"})


def test_the_values_and_the_launcher_are_right(project: Path) -> None:
    run(*ENVIRONMENT, "mypy", *map(str, TESTS.glob("*.py")), cwd=project / "orchestrator")
    run(
        *(*as_user(1000), *ENVIRONMENT, "pytest", "--color=no", "-pno:cacheprovider"),
        *("-c", "pyproject.toml", f"--rootdir={TESTS}", f"--confcutdir={TESTS}", str(TESTS)),
        cwd=project / "orchestrator",
    )
