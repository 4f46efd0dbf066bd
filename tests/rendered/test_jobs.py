"""A project with Cloud Run jobs runs them on this machine, and can make their image."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import psutil
import pytest
from conftest import (
    FUNCTIONS_AND_JOBS,
    JOBS_ALONE,
    Render,
    Workshop,
    add_second_asset,
    fail,
    replace,
    run,
)
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


@pytest.fixture(scope="module")
def alone(render: Render, workshop: Workshop) -> Path:
    """A project with jobs, and without functions. It has a second asset, and a job `reports`."""
    alone = workshop(render(JOBS_ALONE))
    add_second_asset(alone)
    run("uv", "run", "just", "add-job", "reports", cwd=alone)
    (alone / "reports" / "tasks" / "monthly.py").write_text(MONTHLY)
    (alone / "reports" / ".env").write_text("API_KEY=sesame\n")
    definition = alone / "orchestrator" / "src" / "my_data_platform" / "defs" / "monthly"
    definition.mkdir()
    (definition / "defs.yaml").write_text(OF_REPORTS)
    return alone


MONTHLY = """\"\"\"A report.\"\"\"

import os

from dagster_pipes import PipesContext

from gcp_pipes.external import Event


def run(pipes: PipesContext, event: Event) -> None:
    \"\"\"Report the secret.\"\"\"
    pipes.report_asset_materialization(metadata={"secret": os.environ["API_KEY"]})
"""
OF_REPORTS = """type: gcp_pipes.components.CloudRunJobAsset

attributes:
  assets:
    - key: monthly
  task: monthly
  job: my-data-platform-reports
"""


def test_the_demo_of_jobs_alone_materializes_all_assets(
    alone: Path, mark: Mapping[str, str]
) -> None:
    shown = run("uv", "run", "just", "demo", cwd=alone, env={**mark, "COLUMNS": "200"}).stdout

    assert re.findall("^Starting the (?!emulated)(.+?)  ", shown, re.M) == ["Cloud Run job"]
    assert "jobs/my-data-platform-reports" in shown
    for asset in ("people", "visits, partition", "cities", "monthly"):
        assert re.search(f"^{asset}", shown, re.M), shown


def test_an_asset_is_materialized_by_the_job_that_it_names(alone: Path) -> None:
    printed = run("uv", "run", "just", "materialize", "monthly", cwd=alone).stdout

    assert "sesame" in printed


def test_a_task_of_the_second_job_runs_in_the_terminal(alone: Path) -> None:
    printed = run("uv", "run", "just", "job=reports", "task", "monthly", cwd=alone).stdout

    assert "sesame" in printed
    assert "There is no job nope/." in fail(
        "uv", "run", "just", "job=nope", "task", "monthly", cwd=alone
    )


def test_the_next_run_of_a_job_uses_the_edited_task(alone: Path) -> None:
    with running_dev(alone) as dev:
        assert dev.address("Cloud Run job") == "my-data-platform"
        before = dev.materialize("people")
        replace(alone / "cloud_run_job" / "tasks" / "people.py", "Writing", "Storing")
        after = dev.materialize("people")

    assert any(line.startswith("Writing 1000 rows") for line in before)
    assert any(line.startswith("Storing 1000 rows") for line in after)


@pytest.mark.parametrize("settings", ["LAKE_URI=gs://the-real-lake", "JOB_NAME="])
def test_settings_that_name_no_deployed_job_are_an_error(alone: Path, settings: str) -> None:
    file = alone / "orchestrator" / ".env"
    file.write_text(f"{settings}\n")
    try:
        printed = fail("uv", "run", "just", "dev", cwd=alone)
    finally:
        file.unlink()

    assert "orchestrator/.env does not name the job to call." in printed
