"""Renders the template, and runs what it rendered."""

import functools
import os
import re
import shutil
import signal
import subprocess
import textwrap
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import copier
import psutil
import pytest
import pytest_copie.plugin
import yaml
from packaging.version import InvalidVersion, Version
from pytest_copie.plugin import Copie

TEMPLATE = Path(__file__).resolve().parent.parent
# The Python that is rendered, but for its tests.
MODULES = sorted(
    path
    for pattern in ("*.py", "*.py.jinja")
    for path in (TEMPLATE / "template").rglob(pattern)
    if "tests" not in path.parts
)
ANSWER_SETS = sorted((TEMPLATE / "tests" / "template" / "answers").glob("*.yml"))

FUNCTIONS_AND_JOBS: dict[str, object] = {"runs_on": ["functions", "jobs"]}
JOBS_ALONE: dict[str, object] = {"runs_on": ["jobs"]}
ENVIRONMENTS = {".venv", ".mypy_cache"}
PARTS_WITH_ENVIRONMENTS = {"orchestrator", "cloud_function", "cloud_run_job"}

# How to install the programs that some tests need.
INSTALL = {
    "chromium": "On Debian: apt-get install chromium",
    "terraform": "See https://developer.hashicorp.com/terraform/install",
}

# The files whose tests take minutes.
SLOWEST = ["test_transport", "test_project", "test_update", "test_tutorial", "test_infra"]

MARK = "MARK_OF_TEST"  # the environment variable of `mark`

Render = Callable[..., Path]
Workshop = Callable[[Path], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files, so no process is left with one of them at the end."""
    ranks = {name: rank for rank, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def questions(template: Path = TEMPLATE) -> dict[str, dict[str, Any]]:
    """The questions that people are asked, by name."""
    configuration = yaml.safe_load((template / "copier.yml").read_text())
    return {
        name: question
        for name, question in configuration.items()
        if not name.startswith("_") and question.get("when") is not False
    }


def source(module: Path) -> str:
    """The text of a module of the template. One with Jinja has what it has for any answers."""
    text = module.read_text()
    if module.suffix == ".jinja":
        text = re.sub("{{.+?}}", "answer", re.sub("{%.+?%}", "", text))
    return text


@pytest.fixture(scope="session")
def copie_without_trust(copie_session: Copie) -> Iterator[Copie]:
    """The plugin trusts every template, and cannot be told not to; here none is trusted."""

    def run_copy(**options: Any) -> Any:
        return copier.run_copy(**{**options, "unsafe": False}, quiet=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest_copie.plugin, "run_copy", run_copy)
        yield copie_session


@pytest.fixture(scope="session")
def render(copie_without_trust: Copie) -> Render:
    """Renders a project, with defaults for the answers that are not given.

    Copier ignores an answer to a question that it does not know, and would thus let a test with a
    misspelled name pass: here that is an error.
    """

    def render(answers: Mapping[str, object] | None = None, template: Path = TEMPLATE) -> Path:
        answers = dict(answers or {})
        if unknown := answers.keys() - questions(template).keys():
            raise ValueError(f"Not questions that are asked: {', '.join(sorted(unknown))}")
        result = copie_without_trust.copy(extra_answers=answers, template_dir=template)
        if result.exception is not None:
            raise result.exception
        assert result.project_dir is not None
        return result.project_dir

    return render


@pytest.fixture(scope="session")
def project(render: Render) -> Path:
    """A project made of the defaults, shared by all tests that leave it as it is."""
    return render()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A place for one project after the other, of which each finds the environments of the last."""
    folder = tmp_path_factory.mktemp("workshop") / "a project"

    def move(project: Path) -> Path:
        folder.mkdir(exist_ok=True)
        _delete_all_but_environments(folder)
        _move_into(project, folder)
        return folder

    return move


def _delete_all_but_environments(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name in ENVIRONMENTS:
            continue
        if path.name in PARTS_WITH_ENVIRONMENTS:
            _delete_all_but_environments(path)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _move_into(source: Path, destination: Path) -> None:
    for path in source.iterdir():
        if path.name in PARTS_WITH_ENVIRONMENTS:
            (destination / path.name).mkdir(exist_ok=True)
            _move_into(path, destination / path.name)
        elif path.name not in ENVIRONMENTS:
            path.rename(destination / path.name)


@functools.cache
def _clean_environment() -> dict[str, str]:
    """The environment of a user: without this test run's virtual environment.

    Without bytecode, each of the many processes would compile all of Dagster again.
    """
    hidden = ("VIRTUAL_ENV", "PYTEST_", "DAGSTER_", "PYTHONDONTWRITEBYTECODE")
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


def as_user(number: int) -> tuple[str, ...]:
    """Root runs a command after these words as another user, without the rights of root.

    All files belong to root all the same: the user has this number only in its own namespace.
    """
    user, group = f"--map-user={number}", f"--map-group={number}"
    return ("unshare", "--user", user, group) if os.geteuid() == 0 else ()


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
    status, printed = end(*command, cwd=cwd, env=env, timeout=timeout)
    assert status == 0, f"{' '.join(command)} failed:\n{printed}"
    return subprocess.CompletedProcess(command, status, printed)


def run_with_google(project: Path, *command: str) -> str:
    """Run a command in the environment of a project, with the stand-ins for Google's servers."""
    libraries = ("--with=trustme", "--with=cryptography")
    folder = str(TEMPLATE / "tests" / "cloud")
    environment = {"PYTHONPATH": folder, "MYPYPATH": folder}
    return run("uv", "run", *libraries, *command, cwd=project, env=environment).stdout


def fail(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command that has to fail with status 1, and return what it prints."""
    status, printed = end(*command, cwd=cwd, env=env)
    assert status == 1, f"{' '.join(command)} ended with {status}:\n{printed}"
    return printed


def end(
    *command: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 600
) -> tuple[int, str]:
    """Run a command to its end, however it ends; its status, and what it prints."""
    with start(*command, cwd=cwd, env=env) as process:
        try:
            printed, _ = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, printed


def run_transport_tests(project: Path, without: Sequence[str] = ()) -> None:
    """Run `tests/transport/` in the environment of a project's orchestrator; check its types.

    Args:
        project: A rendered project with functions and jobs, and the defaults for the names.
        without: The subjects that are left out, by the names of their files.
    """
    tests = TEMPLATE / "tests" / "transport"
    for folder in ("cloud_function", "orchestrator"):
        run("uv", "add", "gcp-pipes", "--extra=telemetry", cwd=project / folder)
    for task in ("ledgered", "scripted", "sharded", "tables", "unruly"):
        shutil.copy(tests / "functions" / f"{task}.py", project / "cloud_function" / "tasks")
    others = ("dagster-gcp[dataproc]", "psutil", "pytest-xdist", "types-psutil")
    environment = ("uv", "run", *(f"--with={name}" for name in others))
    elsewhere = {"loop.py", "rendering.py", "tables.py", "throughput.py"}  # checked where they run
    benchmarks = (TEMPLATE / "benchmarks").glob("*.py")
    checked = (*tests.glob("*.py"), *(file for file in benchmarks if file.name not in elsewhere))
    run(*environment, "mypy", *map(str, checked), cwd=project / "orchestrator")
    run(
        *(*environment, "pytest", "--color=no", "-pno:cacheprovider", "-pno:logging"),
        *("-c", "pyproject.toml", f"--rootdir={tests}", f"--confcutdir={tests}"),
        # Most of the time they wait, so that more of them can run than there are processors.
        *("--numprocesses=3", "--dist=worksteal", str(tests)),
        *(f"--ignore={tests / f'test_{name}.py'}" for name in without),
        cwd=project / "orchestrator",
        timeout=2700,
    )


def require_program(name: str, *alternatives: str) -> str:
    """Return the path of an installed program, or skip the test.

    In CI (`CI` is set), the test fails instead: a skip there would hide that tests did not run.

    Args:
        name: The program.
        alternatives: Programs to use if the first is not installed.
    """
    for program in (name, *alternatives):
        if path := shutil.which(program):
            return path
    reason = f"{' or '.join((name, *alternatives))} is not in PATH. {INSTALL[name]}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def initialize(infra: Path) -> None:
    """Install Terraform's providers, or skip the test if they cannot be downloaded."""
    require_program("terraform")
    status, printed = end("terraform", "init", "-backend=false", "-input=false", cwd=infra)
    if status != 0 and "Failed to query available provider packages" in printed:
        pytest.skip("Terraform cannot download its providers: no registry or mirror is reachable.")
    assert status == 0, printed


def git(*arguments: str, cwd: Path) -> str:
    """What git prints, run by somebody without settings of their own."""
    identity = ("-c", "user.name=Owner", "-c", "user.email=owner@example.com")
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return run("git", *identity, *arguments, cwd=cwd, env=settings).stdout


def is_version(tag: str) -> bool:
    """Whether Copier takes a tag for a version."""
    try:
        return bool(Version(tag))
    except InvalidVersion:
        return False


def commit_all(repository: Path, message: str) -> None:
    """Commit every file, in a repository that is made where there is none."""
    git("init", "--quiet", "--initial-branch=main", cwd=repository)
    git("add", "--all", cwd=repository)
    git("commit", "--quiet", f"--message={message}", cwd=repository)


def copy_working_tree(destination: Path) -> None:
    """Copy this template as it stands, without what git ignores."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=TEMPLATE)
    for name in filter(None, listed.split("\0")):
        if (TEMPLATE / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TEMPLATE / name, destination / name)


def replace(path: Path, old: str, new: str) -> None:
    """Replace the one occurrence of `old` in a file."""
    text = path.read_text()
    assert text.count(old) == 1, f"{path} has {text.count(old)} times: {old}"
    path.write_text(text.replace(old, new))


@contextmanager
def replaced(path: Path, old: str, new: str) -> Iterator[None]:
    """Replace the one occurrence of `old` in a file during the block."""
    text = path.read_text()
    replace(path, old, new)
    try:
        yield
    finally:
        path.write_text(text)


@contextmanager
def moved(file: Path) -> Iterator[None]:
    """Move a file away during the block."""
    elsewhere = file.rename(file.with_name("elsewhere"))
    try:
        yield
    finally:
        elsewhere.rename(file)


def add_second_asset(project: Path) -> None:
    """Do what the rendered README says under "Add an asset"."""
    steps = re.findall(
        r"^\d\. .*? in `(.+?)`:\n\n {3}```(?:python|yaml)\n(.*?)^ {3}```$",
        (project / "README.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    assert len(steps) == 2
    for path, code in steps:
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_text(textwrap.dedent(code))


RELEASES = [tag for tag in git("tag", cwd=TEMPLATE).split() if is_version(tag)]
"""The tags of all versions of this template."""


@pytest.fixture
def temporary_folder(tmp_path: Path) -> Iterator[Path]:
    """Where programs put temporary folders, if told by TMPDIR; empty, before and after.

    Not counted are the lock files by which uv keeps others from a project, one a project for ever.
    """
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield folder
    assert set(folder.iterdir()) - set(folder.glob("uv-*.lock")) == set()


@pytest.fixture
def mark(temporary_folder: Path) -> Iterator[dict[str, str]]:
    """Environment variables that identify the processes and temporary files of a test.

    After the test, none may be left.
    """
    environment = {MARK: uuid.uuid4().hex, "TMPDIR": str(temporary_folder)}
    yield environment
    assert marked_processes(environment) == []


def marked_processes(environment: Mapping[str, str]) -> list[psutil.Process]:
    """The processes with the environment variables of `mark`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == environment[MARK]:
                found.append(process)
    return found
