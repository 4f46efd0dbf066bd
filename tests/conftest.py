"""Renders the template, and runs what it rendered."""

import functools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_copie.plugin import Copie

TEMPLATE = Path(__file__).resolve().parent.parent
ANSWER_SETS = sorted((TEMPLATE / "tests" / "answers").glob("*.yml"))

Render = Callable[..., Path]


def questions() -> dict[str, dict[str, Any]]:
    """The questions that people are asked, by name."""
    configuration = yaml.safe_load((TEMPLATE / "copier.yml").read_text())
    return {
        name: question
        for name, question in configuration.items()
        if not name.startswith("_") and question.get("when") is not False
    }


@pytest.fixture(scope="session")
def render(copie_session: Copie) -> Render:
    """Renders a project, with defaults for the answers that are not given.

    Copier ignores an answer to a question that it does not know, and would thus let a test with a
    misspelled name pass: here that is an error.
    """

    def render(answers: Mapping[str, object] | None = None) -> Path:
        answers = dict(answers or {})
        if unknown := answers.keys() - questions().keys():
            raise ValueError(f"Not questions that are asked: {', '.join(sorted(unknown))}")
        result = copie_session.copy(extra_answers=answers)
        if result.exception is not None:
            raise result.exception
        assert result.project_dir is not None
        return result.project_dir

    return render


@pytest.fixture(scope="session")
def project(render: Render) -> Path:
    """A project made of the defaults, shared by all tests that leave it as it is."""
    return render()


@functools.cache
def _clean_environment() -> dict[str, str]:
    """The environment of a user: without this test run's virtual environment."""
    hidden = ("VIRTUAL_ENV", "PYTEST_", "DAGSTER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def start(
    *command: str, cwd: Path, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**_clean_environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(
    *command: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a command of a rendered project to its end; it fails the test if it fails.

    Args:
        command: The program and its arguments.
        cwd: Where to run it.
        env: Variables to set beside those of this process.
        timeout: Seconds after which it is killed.
    """
    with start(*command, cwd=cwd, env=env) as process:
        try:
            printed, _ = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, f"{' '.join(command)} failed:\n{printed}"
    return subprocess.CompletedProcess(command, process.returncode, printed)


@pytest.fixture
def temporary_folder(tmp_path: Path) -> Iterator[Path]:
    """Where programs put temporary folders, if told by TMPDIR; empty, before and after.

    Not counted are the lock files by which uv keeps others from a project, one a project for ever.
    """
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield folder
    assert set(folder.iterdir()) - set(folder.glob("uv-*.lock")) == set()
