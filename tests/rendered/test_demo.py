"""`just demo` prints what happened, and leaves no processes or files."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
from conftest import Render, marked_processes, run, start


@pytest.fixture(scope="module")
def installed(project: Path) -> Path:
    """A project with installed environments."""
    for part in (".", "cloud_function", "orchestrator"):
        run("uv", "sync", cwd=project / part)
    return project


def ports(processes: list[psutil.Process]) -> set[int]:
    """The ports that these processes listen on."""
    return {
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def read_until(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"The demo ended without {text!r}")


def test_the_demo_prints_what_happened(installed: Path, mark: Mapping[str, str]) -> None:
    shown = run("uv", "run", "just", "demo", cwd=installed, env={**mark, "COLUMNS": "200"}).stdout

    for text in (
        "people",
        "data version",
        "table_location",
        "gs://my-gcp-project-data-lake/people",
        "name String",
        "INFO     Cloud function version: development",
        "DEBUG    Storing data in bucket",
        "Starting the cloud function",
        "Materializing the assets in Dagster",
        "Done in ",
    ):
        assert text in shown
    assert re.search(r"dagster/row_count +│ 1000 ", shown)


def test_two_demos_run_at_once(installed: Path, mark: Mapping[str, str]) -> None:
    demos = [start("uv", "run", "just", "demo", cwd=installed, env=mark) for _ in range(2)]

    for demo in demos:
        shown, _ = demo.communicate(timeout=300)
        assert demo.returncode == 0, shown
        assert "dagster/row_count" in shown


def by_key(demo: "subprocess.Popen[str]") -> None:
    """Ctrl-C: the terminal signals the whole process group."""
    os.killpg(demo.pid, signal.SIGINT)


def by_impatient_key(demo: "subprocess.Popen[str]") -> None:
    for _ in range(3):
        by_key(demo)


def by_closed_terminal(demo: "subprocess.Popen[str]") -> None:
    os.killpg(demo.pid, signal.SIGHUP)


def by_supervisor(demo: "subprocess.Popen[str]") -> None:
    """A supervisor signals only the process that it started."""
    demo.terminate()


@pytest.mark.parametrize("interrupt", [by_key, by_impatient_key, by_closed_terminal, by_supervisor])
@pytest.mark.parametrize(
    "moment", ["Starting the cloud function ...", "Materializing the assets in Dagster ..."]
)
def test_an_interrupted_demo_leaves_nothing_behind(
    moment: str,
    interrupt: Callable[["subprocess.Popen[str]"], None],
    installed: Path,
    mark: Mapping[str, str],
) -> None:
    demo = start("uv", "run", "just", "demo", cwd=installed, env=mark)
    read_until(demo, moment)
    started = marked_processes(mark)
    listening = ports(started)
    assert listening  # the storage emulator, at least

    interrupt(demo)
    shown, _ = demo.communicate(timeout=60)

    assert demo.returncode != 0
    assert "Done in" not in shown
    psutil.wait_procs(started, timeout=30)
    assert [port for port in listening if is_open(port)] == []


def test_a_demo_that_fails_says_why_and_leaves_nothing_behind(
    render: Render, mark: Mapping[str, str]
) -> None:
    project = render()
    (project / "cloud_function" / "tasks" / "people.py").write_text(
        "def run(pipes, event):\n    raise ValueError('no list[str] in [/out]')\n"
    )

    demo = start("uv", "run", "just", "demo", cwd=project, env=mark)
    shown, _ = demo.communicate(timeout=300)

    assert demo.returncode == 1
    assert "ValueError: no list[str] in [/out]" in shown
    assert 'people.py", line 2, in run' in shown


def test_a_function_that_does_not_start_says_why_and_leaves_nothing_behind(
    render: Render, mark: Mapping[str, str]
) -> None:
    project = render()
    with (project / "cloud_function" / "main.py").open("a") as main:
        main.write("import no_such_module\n")

    demo = start("uv", "run", "just", "demo", cwd=project, env=mark)
    shown, _ = demo.communicate(timeout=300)

    assert demo.returncode == 1
    assert "No module named 'no_such_module'" in shown
    assert "The cloud function ended with status 1 before it was ready" in shown
