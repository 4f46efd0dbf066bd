"""The function's bundle is reproducible and complete."""

import hashlib
import os
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import Render, fail, replace, run

SERVE = """
import base64, itertools, json, sys, zlib
import requests
from local_cloud.cloud import storage_emulator
from local_cloud.processes import free_port, running

def encode(value):
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()

program, folder = sys.argv[1:]
with storage_emulator() as storage:
    bucket = storage["MESSAGES_BUCKET"]
    context = {"asset_keys": ["any"], "partition_key_range": None, "run_id": "a-run"}
    event = {
        "task": "ping",
        "DAGSTER_PIPES_CONTEXT": encode({"data": context}),
        "DAGSTER_PIPES_MESSAGES": encode({"bucket": bucket, "key_prefix": "a-call"}),
    }
    port = free_port()
    command = [program, "--target=main", "--host=127.0.0.1", f"--port={port}"]
    with running("function", command, port=port, environment=storage, directory=folder):
        response = requests.post(f"http://127.0.0.1:{port}", json=event, timeout=60)
    print("RESPONSE", response.status_code, response.text.strip())
    url = f"{storage['STORAGE_EMULATOR_HOST']}/storage/v1/b/{bucket}/o/a-call%2F"
    for chunk in itertools.count(1):
        messages = requests.get(f"{url}{chunk}.json?alt=media", timeout=60)
        if messages.status_code != 200:
            break
        print("MESSAGES", messages.text.replace(chr(10), " "))
"""


@pytest.fixture
def project(render: Render) -> Path:
    """A project whose function has a lock file."""
    project = render()
    run("uv", "lock", cwd=project / "cloud_function")
    return project


def bundle(project: Path, **environment: str) -> Path:
    """Build the bundle."""
    run("uv", "run", "just", "bundle", cwd=project, env=environment)
    return project / "build" / "cloud_function.zip"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("version", ["3.13", "3.14"])
def test_the_requirements_can_be_installed_on_each_runtime(
    version: str, project: Path, tmp_path: Path
) -> None:
    with ZipFile(bundle(project)) as archive:
        archive.extract("requirements.txt", tmp_path)

    run(
        *("uv", "pip", "install", "--dry-run", f"--python-version={version}"),
        *("--python-platform=x86_64-manylinux_2_28", "--only-binary=:all:"),
        *("--require-hashes", "--requirement=requirements.txt", "--target=installed"),
        cwd=tmp_path,
    )


def bundle_error(project: Path) -> str:
    """The error for sources that cannot be bundled."""
    return fail("uv", "run", "just", "bundle", cwd=project)


def test_the_bundle_is_reproducible(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another place"
    shutil.copytree(project, elsewhere, ignore=shutil.ignore_patterns(".venv", "build"))
    for path in (elsewhere / "cloud_function").rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    (elsewhere / "cloud_function" / "__pycache__").mkdir(exist_ok=True)
    (elsewhere / "cloud_function" / "__pycache__" / "main.pyc").touch()
    (elsewhere / "cloud_function" / ".env").write_text("SECRET=sesame\n")
    (elsewhere / "cloud_function" / "tests" / "notes.txt").touch()

    first = sha256(bundle(project))

    assert sha256(bundle(project)) == first
    assert sha256(bundle(elsewhere, TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="7")) == first
    with (elsewhere / "cloud_function" / "lake.py").open("a") as source:
        source.write("# changed\n")
    assert sha256(bundle(elsewhere)) != first


def test_each_function_has_a_bundle(project: Path) -> None:
    run("uv", "run", "just", "add-function", "reports", cwd=project)
    (project / "reports" / "tasks" / "monthly.py").write_text('"""A task."""\n')

    bundle(project)

    with ZipFile(project / "build" / "reports.zip") as archive:
        assert "tasks/monthly.py" in archive.namelist()
        assert "tasks/people.py" not in archive.namelist()
    shutil.rmtree(project / "reports")
    bundle(project)
    assert [path.name for path in (project / "build").glob("*.zip")] == ["cloud_function.zip"]


def test_the_bundle_has_sources_and_hashed_requirements_and_can_be_served(
    project: Path, tmp_path: Path
) -> None:
    (project / "cloud_function" / "tasks" / "query.sql").write_text("SELECT 1\n")

    with ZipFile(bundle(project)) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "function")

    sources = project / "cloud_function"
    package = project / "packages" / "gcp-pipes" / "src"
    assert names == sorted(
        [
            *(
                "function_settings.py",
                "main.py",
                "settings.py",
                "lake.py",
                "requirements.txt",
                "tasks/query.sql",
                "version.txt",
            ),
            *("gcp_pipes/__init__.py", "gcp_pipes/protocol.py", "gcp_pipes/py.typed"),
            "gcp_pipes/telemetry.py",
            *(str(path.relative_to(package)) for path in package.glob("gcp_pipes/external/*.py")),
            *(str(path.relative_to(sources)) for path in (sources / "tasks").glob("*.py")),
        ]
    )
    requirements = (tmp_path / "function" / "requirements.txt").read_text()
    assert "functions-framework==" in requirements
    left_out = ("pytest", "mypy", "local-cloud", "http", "-e ", "gcp-pipes", "dagster=")
    assert not any(name in requirements for name in left_out)

    run("uv", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    run(
        *("uv", "pip", "install", "--require-hashes", "--requirement=function/requirements.txt"),
        cwd=tmp_path,
        env={"VIRTUAL_ENV": str(tmp_path / "venv")},
    )
    (tmp_path / "serve.py").write_text(SERVE)
    program = tmp_path / "venv" / "bin" / "functions-framework"
    printed = run(
        *("uv", "run", "python", str(tmp_path / "serve.py")),
        *(str(program), str(tmp_path / "function")),
        cwd=project,
    ).stdout

    assert 'RESPONSE 200 {"status":"succeeded"}' in printed
    assert "pong" in printed.partition("MESSAGES")[2]


def test_a_lock_file_that_is_missing_or_out_of_date_is_an_error(
    project: Path,
) -> None:
    lock = project / "cloud_function" / "uv.lock"
    lock.unlink()

    assert "Run `uv lock --directory cloud_function`" in bundle_error(project)
    assert not lock.exists()

    run("uv", "lock", cwd=project / "cloud_function")
    before = lock.read_text()
    replace(project / "cloud_function" / "pyproject.toml", '"faker>=37"', '"faker>=37,<99"')

    assert "Run `uv lock --directory cloud_function`" in bundle_error(project)
    assert lock.read_text() == before


def test_sources_that_cannot_be_deployed_are_rejected(
    project: Path,
) -> None:
    sources = project / "cloud_function"
    (sources / "shared.py").symlink_to(project / "README.md")
    assert "shared.py is a symbolic link" in bundle_error(project)
    (sources / "shared.py").unlink()

    (sources / "requirements.txt").touch()
    assert "cloud_function/requirements.txt conflicts with" in bundle_error(project)
    (sources / "requirements.txt").unlink()

    (sources / "main.py").rename(sources / "start.py")
    assert "cloud_function/main.py, the entry point, is missing" in bundle_error(project)
