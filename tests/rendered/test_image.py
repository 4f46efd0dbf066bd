"""The image of Dagster: the steps of its Dockerfile, as far as they go without a builder."""

import json
import os
import re
import shlex
import socket
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Render, as_user, end, fail, run, start

DOCKER = """#!/bin/sh
echo "$@" >docker.txt
"""


@dataclass(frozen=True)
class Image:
    """What the steps of a Dockerfile make, in folders of this machine.

    Attributes:
        environment: The environment variables of its processes.
        directory: Where they start.
        user: The number of their user.
        command: What it runs, on the port 4000.
        health_check: The command that checks that.
    """

    environment: Mapping[str, str]
    directory: Path
    user: int
    command: list[str]
    health_check: list[str]


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, without comments."""
    lines = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
    return re.findall(r"^([A-Z]+) +(.+)$", lines, re.MULTILINE)


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project, and the context of its image, which `just image` has passed to Docker."""
    project = render()
    programs = project / "programs"
    programs.mkdir()
    (programs / "docker").write_text(DOCKER)
    (programs / "docker").chmod(0o755)
    (project / "orchestrator" / ".env").write_text("API_KEY=sesame\n")
    run("uv", "lock", "--quiet", cwd=project / "orchestrator")
    path = f"{programs}:{os.environ['PATH']}"
    run("uv", "run", "just", "image", cwd=project, env={"PATH": path})
    return project


@pytest.fixture(scope="module")
def image(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, of which nothing can be written."""
    folder = tmp_path_factory.mktemp("image")
    context = project / "build" / "orchestrator"
    run("uv", "venv", "--quiet", "--seed", str(folder / "python"), cwd=context)
    steps = instructions((context / "Dockerfile").read_text())
    here = {"/packages": f"{folder}/packages", "/orchestrator": str(context)}

    def placed(text: str) -> str:
        return re.sub("|".join(rf"{path}\b(?!/\w*\.)" for path in here), lambda m: here[m[0]], text)

    [install] = [words for name, words in steps if name == "RUN"]
    pip = install.replace("pip install", f"{folder}/python/bin/python -m pip install --quiet", 1)
    run("sh", "-euc", placed(pip), cwd=context)
    [variables] = [words for name, words in steps if name == "ENV"]
    values = (placed(each).split("=", 1) for each in shlex.split(variables))
    environment = {name: value.replace("$PATH", os.environ["PATH"]) for name, value in values}
    _, command = next(step for step in reversed(steps) if step[0] == "CMD")
    [check] = [words for name, words in steps if name == "HEALTHCHECK"]
    [user] = [words for name, words in steps if name == "USER"]
    for path in (*folder.rglob("*"), *context.rglob("*"), context):
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    return Image(
        environment={**environment, "HOME": "/nonexistent"},
        directory=context,
        user=int(user.split(":")[0]),
        command=json.loads(command),
        health_check=json.loads(check.split("CMD", 1)[1]),
    )


@contextmanager
def running(image: Image, port: int) -> Iterator["subprocess.Popen[str]"]:
    """Run the command of an image on a port of this machine."""
    command = [each.replace("--port=4000", f"--port={port}") for each in image.command]
    with start(
        *as_user(image.user), *command, cwd=image.directory, env=image.environment
    ) as process:
        yield process
        process.terminate()
        # Dagster ignores SIGTERM if it has inherited that SIGINT is ignored, as in the background.
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def is_healthy(image: Image, port: int) -> bool:
    check = [each.replace("--port=4000", f"--port={port}") for each in image.health_check]
    status, _ = end(*as_user(image.user), *check, cwd=image.directory, env=image.environment)
    return status == 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def test_docker_builds_the_unpacked_bundle(project: Path) -> None:
    arguments = (project / "docker.txt").read_text().split()
    [version] = (project / "build" / "orchestrator" / "version.txt").read_text().split()

    assert arguments[0] == "build"
    assert re.fullmatch(r"--tag=orchestrator:[0-9a-f]{12}", arguments[1])
    assert re.fullmatch(r"--build-arg=VERSION=[0-9a-f]{64}", arguments[2])
    assert arguments[3:] == [str(project / "build" / "orchestrator")]
    assert re.fullmatch("[0-9a-f]{12}", version)


def test_without_docker_the_error_says_what_to_do(project: Path) -> None:
    uv = str(Path(run("sh", "-c", "command -v uv", cwd=project).stdout.strip()).parent)

    printed = fail("uv", "run", "just", "image", cwd=project, env={"PATH": f"{uv}:/usr/bin:/bin"})

    assert "Could not build the image: Docker is missing. Install it" in printed
    assert "or build build/orchestrator/ with another program." in printed


def test_the_context_has_no_secret_and_no_test(project: Path) -> None:
    files = {
        path.relative_to(project / "build" / "orchestrator").as_posix()
        for path in (project / "build" / "orchestrator").rglob("*")
    }

    assert {"Dockerfile", "production/dagster.yaml", "gcp_pipes/orchestrator/call.py"} <= files
    assert not [name for name in files if re.search(r"(^|/)(\.|tests\b|uv\.lock)", name)]


def test_the_code_location_starts_as_an_unknown_user_who_can_write_nothing(image: Image) -> None:
    port = free_port()
    assert image.user == 65532
    assert not is_healthy(image, port)

    with running(image, port) as process:
        for _ in range(30):
            if is_healthy(image, port):
                break
            assert process.poll() is None
        else:
            pytest.fail("The code location is not healthy.")


@pytest.mark.parametrize("program", ["dagster-webserver", "dagster-daemon"])
def test_the_image_has_the_other_processes_and_their_packages(image: Image, program: str) -> None:
    settings = {
        "DAGSTER_POSTGRES_URL": "postgresql://dagster@127.0.0.1:1/dagster",
        "DAGSTER_LOGS_BUCKET": "logs",
        "CODE_LOCATION_HOST": "127.0.0.1",
        "CODE_LOCATION_PORT": "4000",
    }
    action = ["run"] if program == "dagster-daemon" else []

    status, printed = end(
        *(*as_user(image.user), program, *action, "--workspace=production/workspace.yaml"),
        cwd=image.directory,
        env={**image.environment, **settings},
    )

    assert status != 0
    # All is loaded and configured: only the database is missing.
    assert "too many retries for DB connection" in printed
