"""Dagster as in production, by `just prod`: nothing is lost or done twice, whatever is killed."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Render, as_user, fail
from dev import Dev, command, running_dev

PROD = ("uv", "run", "just", "prod")

TASK = """\"\"\"Writes to a ledger what it does.\"\"\"

import time
from pathlib import Path

from dagster_pipes import PipesContext

from gcp_pipes.external import Event, event_input


def run(pipes: PipesContext, event: Event) -> None:
    with Path(event_input(event, "ledger")).open("a") as ledger:
        ledger.write(f"{pipes.partition_key}\\n")
    time.sleep(1)
    pipes.report_asset_materialization()
"""

PARTITIONED = """type: gcp_pipes.components.CloudFunctionAsset

attributes:
  assets:
    - key: entries
      partitions_def: {{ type: static, partition_keys: {keys} }}
  task: ledgered
  event: {{ ledger: {ledger} }}
  pool: cloud_function
"""

TICKING = """\"\"\"A schedule and a sensor.\"\"\"

from pathlib import Path

import dagster as dg

INBOX = Path({inbox!r})


@dg.op
def count() -> None:
    pass


@dg.job(executor_def=dg.in_process_executor)
def scheduled() -> None:
    count()


@dg.job(executor_def=dg.in_process_executor)
def arrived() -> None:
    count()


@dg.schedule(
    job=scheduled,
    cron_schedule="* * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def every_minute(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    return dg.RunRequest(tags={{"minute": str(context.scheduled_execution_time)}})


@dg.sensor(job=arrived, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def arrivals(context: dg.SensorEvaluationContext):
    for file in INBOX.iterdir():
        yield dg.RunRequest(run_key=file.name)


@dg.definitions
def ticking() -> dg.Definitions:
    return dg.Definitions(jobs=[scheduled, arrived], schedules=[every_minute], sensors=[arrivals])
"""

KEYS = [f"{number:03}" for number in range(100)]


@pytest.fixture
def project(render: Render, tmp_path: Path) -> Path:
    """A project with an asset of 100 partitions, a schedule and a sensor."""
    project = render()
    definitions = project / "orchestrator" / "src" / "my_data_platform" / "defs"
    (project / "cloud_function" / "tasks" / "ledgered.py").write_text(TASK)
    (definitions / "entries").mkdir()
    (definitions / "entries" / "defs.yaml").write_text(
        PARTITIONED.format(keys=KEYS, ledger=tmp_path / "ledger")
    )
    (tmp_path / "inbox").mkdir()
    (definitions / "ticking.py").write_text(TICKING.format(inbox=str(tmp_path / "inbox")))
    return project


@pytest.fixture
def prod(project: Path) -> Iterator[Dev]:
    """Its running `just prod`."""
    # PostgreSQL refuses to run as root.
    with running_dev(project, command=(*as_user(1000), *PROD)) as prod:
        yield prod


def python_process(prod: Dev, words: str) -> psutil.Process:
    """The process of Python that has these words in its command."""
    found = psutil.Process(prod.process.pid).children(recursive=True)
    [process] = (each for each in found if re.search(rf"/python .*{words}", command(each)))
    return process


def kill_run(prod: Dev) -> None:
    """Kill the processes of the run that is in progress, as when its container ends."""
    for process in python_process(prod, "api grpc").children(recursive=True):
        if "spawn_main" in command(process):
            process.kill()


def successful(prod: Dev, job: str, tag: str) -> Counter[str]:
    """How many runs of a job succeeded, for each value of a tag."""
    runs = prod.graphql(
        f"""{{ runsOrError(filter: {{pipelineName: "{job}", statuses: [SUCCESS]}}) {{
          ... on Runs {{ results {{ tags {{ key value }} }} }}
        }} }}"""
    )["runsOrError"]["results"]
    return Counter(each["value"] for run in runs for each in run["tags"] if each["key"] == tag)


def test_as_root_it_says_why_there_is_no_database(project: Path) -> None:
    printed = fail("unshare", "--user", "--map-root-user", *PROD, cwd=project)

    assert "PostgreSQL refuses to run as root. Run this as another user" in printed


def test_nothing_is_lost_or_done_twice_while_the_processes_of_dagster_are_killed(
    prod: Dev, tmp_path: Path
) -> None:
    ledger, inbox = tmp_path / "ledger", tmp_path / "inbox"
    for name in ("first", "second"):
        (inbox / name).touch()

    backfill_id = prod.submit_backfill("entries", KEYS)
    prod.eventually(lambda: ledger.exists() and ledger.read_text().count("\n") > 20)
    python_process(prod, "dagster-daemon run").kill()
    (inbox / "third").touch()
    kill_run(prod)
    prod.eventually(lambda: "The daemon has ended" in prod.printed)
    prod.eventually(lambda: ledger.read_text().count("\n") > 60)
    python_process(prod, "api grpc").kill()
    prod.eventually(lambda: "The code location has ended" in prod.printed)
    prod.eventually(lambda: prod.backfill_state(backfill_id)["status"] == "COMPLETED_SUCCESS")

    assert Counter(ledger.read_text().split()) == dict.fromkeys(KEYS, 1)
    assert Counter(prod.materializations("entries")) == dict.fromkeys(KEYS, 1)
    # A run that was killed is executed again, as a run with the same tags.
    files = {"first": 1, "second": 1, "third": 1}
    prod.eventually(lambda: successful(prod, "arrived", "dagster/run_key") == files)
    prod.eventually(lambda: successful(prod, "scheduled", "minute"))
    assert set(successful(prod, "scheduled", "minute").values()) == {1}

    started = psutil.Process(prod.process.pid).children(recursive=True)
    prod.stop()
    psutil.wait_procs(started, timeout=10)
    assert [each for each in map(command, started) if each] == []
