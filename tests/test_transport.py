"""The message transport, tested in a rendered project: see transport/."""

import shutil
from pathlib import Path

from conftest import Render, run

TRANSPORT = Path(__file__).parent / "transport"
BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "transport.py"


def test_the_transport_loses_nothing(render: Render) -> None:
    project = render()
    run("uv", "sync", cwd=project / "cloud_function")
    shutil.copy(TRANSPORT / "functions" / "scripted.py", project / "cloud_function" / "tasks")
    environment = ("uv", "run", "--with=dagster-gcp[dataproc]")

    checked = (*TRANSPORT.glob("*.py"), BENCHMARK)
    run(*environment, "mypy", *map(str, checked), cwd=project / "orchestrator")
    run(
        *(*environment, "pytest", "--color=no", "-pno:cacheprovider", "-pno:logging"),
        *("-c", "pyproject.toml", f"--rootdir={TRANSPORT}", f"--confcutdir={TRANSPORT}"),
        str(TRANSPORT),
        cwd=project / "orchestrator",
        timeout=1800,
    )
