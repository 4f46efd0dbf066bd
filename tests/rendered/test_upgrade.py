"""`just upgrade-test` tries the newest Dagster in a copy, and leaves the project as it is."""

import os
import re
import signal
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from checks import contents
from conftest import Render, Workshop, commit_all, fail, git, marked_processes, run, start

COMMAND = ("uv", "run", "just", "upgrade-test")

WAITS = '''"""Waits with a server, until it is interrupted."""

import os
import time
from pathlib import Path


def test_it_waits(lake: str) -> None:
    Path(os.environ["WAITING"]).touch()
    time.sleep(600)
'''
FAILS = '''"""Fails with any Dagster."""


def test_it_fails() -> None:
    assert "old" == "new"
'''

BOUNDS = """
dependencies = [ # not "dagster<2"
    "dagster>=1.13.5,<1.14", # "dagster<1.14" is what the tests ran with
    'Dagster_Shared[a,b] >= 1.13, < 1.14 ; python_version < "3.14"',
    "dagster-gcp==0.29.*", "dagster-k8s~=0.29.5", "dagster-aws==0.29.5", "dagster-dbt<=0.30",
    "dagster-pipes!=1.13.7,<1.14",
    "dagster", "dagster>=1", "dagster @ https://example.com/dagster<2",
    "my-dagster<2", "pydantic>=2.10,<3",
]
description = "dagster, <2 of it, and # no comment"
notes = \"\"\"
"dagster<2"
\"\"\"
"""
LIFTED = """
dependencies = [ # not "dagster<2"
    "dagster>=1.13.5", # "dagster<1.14" is what the tests ran with
    'Dagster_Shared[a,b] >= 1.13; python_version < "3.14"',
    "dagster-gcp>=0.29", "dagster-k8s>=0.29.5", "dagster-aws>=0.29.5", "dagster-dbt",
    "dagster-pipes!=1.13.7",
    "dagster", "dagster>=1", "dagster @ https://example.com/dagster<2",
    "my-dagster<2", "pydantic>=2.10,<3",
]
description = "dagster, <2 of it, and # no comment"
notes = \"\"\"
"dagster<2"
\"\"\"
"""


def bind(project: Path, bound: str) -> None:
    """Replace the upper bound of Dagster's packages in a project."""
    for part in ("orchestrator", "packages/gcp-pipes"):
        file = project / part / "pyproject.toml"
        file.write_text(re.sub(r',<1\.[\d.]+"', f'{bound}"', file.read_text()))


def keep_tests(project: Path, part: str, test: str) -> None:
    """Let a part of a project run only the tests in one file."""
    file = project / part / "pyproject.toml"
    paths = f'testpaths = ["tests/{test}"]'
    file.write_text(re.sub("(?m)^testpaths = .*", paths, file.read_text()))


def shorten_check(project: Path, commands: str) -> None:
    """Remove the commands that match a pattern from `just check`."""
    justfile = project / "justfile"
    before, check, after = re.split(r"(^check: .*\n(?: +.+\n)+)", justfile.read_text(), flags=re.M)
    justfile.write_text(before + re.sub(f"(?m)^ +{commands}\n", "", check) + after)


def locked(project: Path) -> str:
    """The version of Dagster in the lock file of the orchestrator."""
    lock = tomllib.loads((project / "orchestrator" / "uv.lock").read_text())
    [version] = [each["version"] for each in lock["package"] if each["name"] == "dagster"]
    return str(version)


@pytest.fixture(scope="module")
def outdated(render: Render, workshop: Workshop) -> Path:
    """A project in a folder with a space, with an older Dagster, few tests and no check of types.

    Its cloud function has no lock file.
    """
    project = workshop(render())
    bind(project, ",<1.13.21")
    run("uv", "lock", cwd=project / "orchestrator")
    keep_tests(project, "orchestrator", "test_settings.py")
    keep_tests(project, "cloud_function", "test_people.py")
    shorten_check(project, ".*mypy.*")
    run("uv", "lock", cwd=project)
    commit_all(project, "An older Dagster")
    return project


@pytest.fixture(scope="module")
def printed(outdated: Path) -> str:
    """What the recipe prints for that project."""
    return run(*COMMAND, cwd=outdated).stdout


def test_the_newest_dagster_is_checked_and_tested(printed: str) -> None:
    newest = re.findall(r"^  dagster 1\.13\.20 -> (.+)$", printed, re.M)

    assert len(newest) == 1
    assert f"  dagster-webserver 1.13.20 -> {newest[0]}\n" in printed
    assert "All definitions loaded successfully." in printed
    assert len(re.findall("==== .* passed.* ====", printed)) == 2
    assert "The checks and tests pass. Your project is unchanged." in printed


def test_the_project_is_unchanged(printed: str, outdated: Path) -> None:
    assert git("status", "--porcelain", cwd=outdated) == ""
    assert locked(outdated) == "1.13.20"


@pytest.fixture(scope="module")
def upgraded(printed: str, outdated: Path) -> Path:
    """The same project, upgraded as the recipe printed, and with a short `just check`."""
    bind(outdated, "")
    for command in re.findall("^ +(uv lock .+)$", printed, re.M):
        run(*command.split(), cwd=outdated)
    shorten_check(outdated, ".+")
    return outdated


def test_what_is_printed_upgrades_the_project(printed: str, upgraded: Path) -> None:
    assert f"  dagster 1.13.20 -> {locked(upgraded)}\n" in printed


def test_a_failed_test_is_the_status_and_the_project_is_unchanged(upgraded: Path) -> None:
    (upgraded / "cloud_function" / "tests" / "test_people.py").write_text(FAILS)
    before = contents(upgraded)

    printed = fail(*COMMAND, cwd=upgraded)

    assert f"The project has the newest Dagster already: {locked(upgraded)}." in printed
    assert "1 failed" in printed
    assert "Failed: `just test` ended with status 1. The output is above." in printed
    assert "Your project is unchanged." in printed
    assert contents(upgraded) == before


def test_an_interrupt_leaves_nothing_behind(
    upgraded: Path, mark: Mapping[str, str], tmp_path: Path
) -> None:
    (upgraded / "cloud_function" / "tests" / "test_people.py").write_text(WAITS)
    waiting = tmp_path / "waiting"
    process = start(*COMMAND, cwd=upgraded, env={**mark, "WAITING": str(waiting)})
    while not waiting.exists():
        assert process.poll() is None
        time.sleep(0.1)
    started = marked_processes(mark)

    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=120)

    assert process.returncode == 130
    assert "Interrupted. All processes are stopped, and the copy is deleted." in printed
    psutil.wait_procs(started, timeout=30)


def test_only_upper_bounds_of_dagster_are_lifted(upgraded: Path) -> None:
    program = "import sys, local_cloud.upgrade as it; print(it.lift_bounds(sys.argv[1]))"

    lifted = run("uv", "run", "--quiet", "python", "-c", program, BOUNDS, cwd=upgraded).stdout

    assert lifted == f"{LIFTED}\n"
    assert tomllib.loads(lifted)


def test_the_copy_has_what_git_would_commit(upgraded: Path, tmp_path: Path) -> None:
    program = "from local_cloud.upgrade import files_to_commit; print(*files_to_commit(), sep='|')"
    command = ("uv", "run", "--quiet", "python", "-c", program)
    (upgraded / "orchestrator" / ".env").touch()
    (upgraded / "a new file").touch()
    expected = set(contents(upgraded))
    assert "a new file" in expected

    found = [run(*command, cwd=upgraded).stdout]
    repository = upgraded / ".git"
    elsewhere = repository.rename(tmp_path / "git")
    found.append(run(*command, cwd=upgraded).stdout)  # in no repository
    git("init", "--quiet", cwd=upgraded.parent)
    (upgraded.parent / ".gitignore").write_text("*\n")
    found.append(run(*command, cwd=upgraded).stdout)  # in a folder that a repository ignores
    elsewhere.rename(repository)

    assert [set(each.strip().split("|")) for each in found] == [expected] * 3
