"""Dagster on Google Kubernetes Engine, with a stand-in for the Kubernetes API."""

import os
from pathlib import Path

import pytest
from conftest import TEMPLATE, Render, run
from test_prod import AS_USER

TESTS = TEMPLATE / "tests" / "kubernetes"
ENVIRONMENT = ("uv", "run", "--group=local-production", "--with=types-pyyaml")


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    return render({"orchestrator": "gke"})


def test_the_values_and_the_launcher_are_right(project: Path) -> None:
    as_user = AS_USER if os.geteuid() == 0 else ()
    run(*ENVIRONMENT, "mypy", *map(str, TESTS.glob("*.py")), cwd=project / "orchestrator")
    run(
        *(*as_user, *ENVIRONMENT, "pytest", "--color=no", "-pno:cacheprovider"),
        *("-c", "pyproject.toml", f"--rootdir={TESTS}", f"--confcutdir={TESTS}", str(TESTS)),
        cwd=project / "orchestrator",
    )
