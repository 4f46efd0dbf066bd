"""A project with a Cloud Run job runs it on this machine, as processes, and can make its image."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import psutil
import pytest
from conftest import FUNCTIONS_AND_JOBS, Render, run
from dev import Dev, running_dev

# Runs the command of an image, where it is unpacked, as the local cloud does for a job.
RUN_IMAGE = """
import sys
import dagster as dg
from gcp_pipes.orchestrator import PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.cloud_run_job_client import PipesCloudRunJobClient
from google.cloud import storage
from local_cloud.cloud import storage_emulator
from local_cloud.credentials import use
from local_cloud.run_admin import Job, run_admin
from pathlib import Path

folder, *command = sys.argv[1:]
with storage_emulator() as settings:
    use(settings)
    environment = {"PYTHONPATH": f"{folder}/packages", "PYTHONDONTWRITEBYTECODE": "1"}
    job = Job(command, directory=Path(folder, "job"), environment=environment)
    with run_admin({"work": job}) as admin:
        reader = PipesCloudStorageMessageReader(
            bucket=settings["MESSAGES_BUCKET"], client=storage.Client()
        )
        client = PipesCloudRunJobClient(
            reader, project="local", region="here", job="work", endpoint=admin.url, timeout=60
        )

        @dg.op
        def call(context):
            client.run(context=context, event={"task": "ping"})

        @dg.job
        def image():
            call()

        assert image.execute_in_process().success
"""


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project with functions and jobs."""
    project = render(FUNCTIONS_AND_JOBS)
    run("uv", "lock", cwd=project / "cloud_function")
    return project


def test_the_demo_runs_the_job_and_leaves_no_process(
    project: Path, mark: Mapping[str, str]
) -> None:
    shown = run("uv", "run", "just", "demo", cwd=project, env={**mark, "COLUMNS": "200"}).stdout

    assert "Starting the Cloud Run job" in shown
    assert re.search(
        r"job +projects/my-gcp-project/locations/europe-west4/jobs/my-data-plat", shown
    )
    assert "visits, partition" in shown


SLEEP = """\"\"\"A task that takes long.\"\"\"

import time

from dagster_pipes import PipesContext

from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    \"\"\"Sleep.\"\"\"
    pipes.log.info("asleep")
    time.sleep(600)
"""
DEFINITION = """type: gcp_pipes.components.CloudRunJobAsset

attributes:
  assets:
    - key: sleepy
  task: sleepy
"""


@pytest.fixture
def dev(project: Path) -> Iterator[Dev]:
    """A running `just dev`, with an asset whose task takes long."""
    (project / "cloud_function" / "tasks" / "sleepy.py").write_text(SLEEP)
    definition = project / "orchestrator" / "src" / "my_data_platform" / "defs" / "sleepy"
    definition.mkdir()
    (definition / "defs.yaml").write_text(DEFINITION)
    with running_dev(project) as dev:
        yield dev


def tasks(project: Path) -> list[psutil.Process]:
    """The processes of tasks of the job."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "job.py" in process.cmdline() and process.cwd() == str(project / "cloud_function"):
                found.append(process)
    return found


def test_terminating_a_run_stops_the_process_of_its_task(project: Path, dev: Dev) -> None:
    run_id = dev.submit("sleepy")
    dev.eventually(lambda: "asleep" in str(dev.logs(run_id)))
    assert tasks(project)

    dev.terminate(run_id)

    dev.eventually(lambda: dev.status(run_id) == "CANCELED")
    dev.eventually(lambda: tasks(project) == [])


def test_the_image_holds_what_the_job_needs(project: Path, tmp_path: Path) -> None:
    run("uv", "run", "just", "bundle", cwd=project)
    with ZipFile(project / "build" / "cloud_function.zip") as archive:
        archive.extractall(tmp_path / "job")
    steps = re.findall(r"^([A-Z]+) (.+)$", (tmp_path / "job" / "Dockerfile").read_text(), re.M)
    [install] = [words for name, words in steps if name == "RUN"]
    [command] = [words for name, words in steps if name == "ENTRYPOINT"]
    assert ("USER", "65532:65532") in steps
    assert command == '["python", "job.py"]'
    assert "--require-hashes" in install

    run("uv", "venv", "--seed", str(tmp_path / "python"), cwd=tmp_path)
    python = tmp_path / "python" / "bin" / "python"
    pip = install.replace("/packages", str(tmp_path / "packages")).split()
    run(str(python), "-m", *pip, cwd=tmp_path / "job")
    shutil.rmtree(tmp_path / "job" / "__pycache__", ignore_errors=True)
    (tmp_path / "run_image.py").write_text(RUN_IMAGE)
    run(
        *("uv", "run", "python", str(tmp_path / "run_image.py")),
        *(str(tmp_path), str(python), "job.py"),
        cwd=project / "orchestrator",
    )
