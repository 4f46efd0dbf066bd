"""What a code location needs, from production/: fail_interrupted_runs.py, migrate.py."""

import json
import sqlite3
from pathlib import Path

from conftest import Render, run

# Makes a run of each status before and after a time, and prints what became of the runs.
INTERRUPTED = """
import json, runpy, sys, time
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import filter_runs_to_should_retry

with DagsterInstance.get() as instance:
    def run(status):
        return create_run_for_test(instance, status=DagsterRunStatus[status]).run_id

    statuses = ["NOT_STARTED", "STARTING", "STARTED", "CANCELING", "SUCCESS"]
    ids = {each: run(each) for each in statuses}
    time.sleep(2)  # SQLite has the time of a new run in seconds
    sys.argv = ["", time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime())]  # as Docker does
    time.sleep(2)
    ids["STARTED since"] = run("STARTED")
    runpy.run_path("production/fail_interrupted_runs.py", run_name="__main__")
    runs = {each: instance.get_run_by_id(run_id) for each, run_id in ids.items()}
    retried = [run.run_id for run in filter_runs_to_should_retry(runs.values(), instance)]
    print(json.dumps({each: [run.status.value, run.run_id in retried]
                      for each, run in runs.items()}))
"""


def test_runs_that_ended_with_the_code_location_are_executed_again(
    render: Render, tmp_path: Path
) -> None:
    orchestrator = render({"orchestrator": "vm"}) / "orchestrator"
    production = (orchestrator / "production" / "dagster.yaml").read_text()
    retries = production[production.index("run_retries:") : production.index("run_monitoring:")]
    (tmp_path / "dagster.yaml").write_text(retries)

    printed = run(
        *("uv", "run", "--quiet", "python", "-c", INTERRUPTED),
        cwd=orchestrator,
        env={"DAGSTER_HOME": str(tmp_path)},
    ).stdout

    assert json.loads(printed.splitlines()[-1]) == {
        "NOT_STARTED": ["NOT_STARTED", False],
        "STARTING": ["FAILURE", True],
        "STARTED": ["FAILURE", True],
        "CANCELING": ["CANCELED", False],
        "SUCCESS": ["SUCCESS", False],
        "STARTED since": ["STARTED", False],
    }


def test_the_tables_of_a_newer_dagster_stay_as_they_are(render: Render, tmp_path: Path) -> None:
    orchestrator = render({"orchestrator": "vm"}) / "orchestrator"
    (tmp_path / "dagster.yaml").touch()
    command = ("uv", "run", "--quiet", "python", "production/migrate.py")
    home = {"DAGSTER_HOME": str(tmp_path)}

    created = run(*command, cwd=orchestrator, env=home).stdout
    with sqlite3.connect(tmp_path / "history" / "runs.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'newer'")
    kept = run(*command, cwd=orchestrator, env=home).stdout

    assert "newer" not in created
    assert "The tables are those of a newer Dagster, and stay as they are" in kept
    with sqlite3.connect(tmp_path / "history" / "runs.db") as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [
            ("newer",)
        ]
