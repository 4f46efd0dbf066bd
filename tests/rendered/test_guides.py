"""The code in the guides works as it is written."""

import json
import re
import signal
import sqlite3
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TEMPLATE, Render, replace, run
from dev import Dev, command, running_dev

GUIDES = TEMPLATE / "docs" / "guides"
CODE = re.compile(r'^```(?:python|yaml|sh) title="([^"\n]+/[^"\n]+)"\n(.*?)^```$', re.DOTALL | re.M)
ADD = re.compile(r"^uv add --directory (\S+) (.+)$", re.M)


def add_code(guide: str, project: Path) -> None:
    """Add the packages and the files of a guide to a project."""
    text = (GUIDES / guide).read_text()
    for folder, packages in ADD.findall(text):
        words = re.findall(r'"([^"]+)"', packages)
        run("uv", "add", "--directory", folder, *words, cwd=project)
    files = CODE.findall(text)
    assert files
    for path, code in files:
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_text(code)


@pytest.fixture(scope="module")
def guided(render: Render) -> Path:
    """A project with the code of the guides, and with people."""
    project = render()
    for guide in ("tables.md", "read-a-table.md", "arriving-files.md", "other-targets.md"):
        add_code(guide, project)
    just(project, "task", "people", "--event", '{"rows": 50}')
    return project


def just(project: Path, *command: str, **variables: str) -> str:
    return run("uv", "run", "just", *command, cwd=project, env=variables).stdout


def test_the_code_of_the_guides_passes_the_checks(guided: Path) -> None:
    just(guided, "check")


def test_a_table_is_compacted_and_its_history_is_shown(guided: Path) -> None:
    just(guided, "task", "people", "--event", '{"rows": 50}')
    just(guided, "task", "visits", "--partition", "2026-01-01")

    printed = just(guided, "materialize", "maintained_tables")

    assert "people: 0 files are now 0; 0 old files were deleted" in printed
    assert "people: version 1: WRITE" in printed
    assert "visits: version 0: WRITE" in printed


def test_an_asset_reads_a_table_in_dagster(guided: Path) -> None:
    for day in ("2026-01-01", "2026-01-02"):
        just(guided, "task", "visits", "--partition", day)

    printed = just(guided, "materialize", "busiest_days", COLUMNS="200")

    assert re.search(r"days.+2026-01-02\W+100", printed), printed


def test_people_are_written_to_a_parquet_file(guided: Path) -> None:
    assert "people_in_parquet/people.parquet" in just(
        guided, "task", "people_in_parquet", COLUMNS="200"
    )


def test_people_are_written_to_an_iceberg_table(guided: Path, tmp_path: Path) -> None:
    settings = guided / "cloud_function" / ".env"
    replace(settings, "/tmp/iceberg.db", f"{tmp_path}/iceberg.db")
    replace(settings, "/tmp/iceberg\n", f"{tmp_path}/iceberg\n")

    printed = just(guided, "task", "people_in_iceberg", COLUMNS="200")

    assert re.search(r"dagster/row_count +│ 50 ", printed)
    with closing(sqlite3.connect(tmp_path / "iceberg.db")) as catalog:
        tables = catalog.execute("SELECT table_namespace, table_name FROM iceberg_tables")
        assert list(tables) == [("shop", "people")]
    assert list((tmp_path / "iceberg").rglob("*.parquet"))


@contextmanager
def bigquery() -> Iterator[tuple[str, list[Any]]]:
    """A stand-in for BigQuery, whose jobs are done at once: its URL, and the jobs."""
    jobs: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            jobs.append(job)
            done = {"status": {"state": "DONE"}, "statistics": {"load": {"outputRows": "50"}}}
            body = json.dumps({**job, **done}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", jobs
        finally:
            server.shutdown()
            thread.join()


def test_the_files_of_a_table_are_loaded_into_bigquery(guided: Path) -> None:
    event = '{"table": "my-project.shop.people"}'

    with bigquery() as (url, jobs):
        printed = just(
            *(guided, "task", "people_in_bigquery", "--event", event),
            BIGQUERY_EMULATOR_HOST=url,
            GOOGLE_CLOUD_PROJECT="my-project",
        )

    [job] = jobs
    load = job["configuration"]["load"]
    assert re.fullmatch(r"gs://my-gcp-project-data-lake/people/\S+\.parquet", *load["sourceUris"])
    assert load["writeDisposition"] == "WRITE_TRUNCATE"
    assert load["destinationTable"]["tableId"] == "people"
    assert "of the table into my-project.shop.people" in printed


def test_each_file_that_arrives_has_one_run_also_after_a_crash(guided: Path) -> None:
    [definition] = guided.glob("orchestrator/src/*/defs/orders.py")
    replace(definition, "minimum_interval_seconds=60", "minimum_interval_seconds=1")
    with running_dev(guided) as dev:
        start_sensor(dev, "arrived_order_files")
        upload(dev, *range(3))
        dev.eventually(lambda: len(runs(dev)) >= 1)
        daemon(dev).send_signal(signal.SIGKILL)
        dev.process.wait(120)
    with running_dev(guided) as dev:
        upload(dev, *range(3, 10))
        ended = {"SUCCESS", "FAILURE", "CANCELED"}
        dev.eventually(lambda: len(runs(dev)) >= 10 and set(runs(dev)) <= ended)
        dev.eventually(lambda: ticks(dev) >= 3)

        # The crash interrupts the runs in progress: three at most. They are not requested again.
        assert len(runs(dev)) == 10
        assert runs(dev).count("SUCCESS") >= 7
        arrived = Counter(f"incoming/orders/{number}.csv" for number in range(10))
        missing = arrived - Counter(dev.materializations("orders"))
        if missing:  # as the guide says
            assert dev.backfill("orders", list(missing))["status"] == "COMPLETED_SUCCESS"
        assert Counter(dev.materializations("orders")) == arrived


def start_sensor(dev: Dev, name: str) -> None:
    dev.graphql(
        f"""mutation {{ startSensor(sensorSelector: {{
          repositoryLocationName: "orchestrator", repositoryName: "__repository__",
          sensorName: "{name}"
        }}) {{ __typename ... on PythonError {{ message }} }} }}"""
    )


def upload(dev: Dev, *numbers: int) -> None:
    """Upload files as the guide does."""
    for number in numbers:
        name = f"incoming%2Forders%2F{number}.csv"
        url = f"{dev.address('Cloud Storage')}/upload/storage/v1/b/my-gcp-project-data-lake/o"
        request = urllib.request.Request(
            f"{url}?uploadType=media&name={name}", data=b"id,amount\n1,9.50\n"
        )
        with urllib.request.urlopen(request, timeout=30):
            pass


def runs(dev: Dev) -> list[str]:
    """The statuses of all runs of the sensor."""
    found = dev.graphql(
        """{ runsOrError(filter: {tags: [
          {key: "dagster/sensor_name", value: "arrived_order_files"}
        ]}) { ... on Runs { results { status } } } }"""
    )
    return [each["status"] for each in found["runsOrError"]["results"]]


def ticks(dev: Dev) -> int:
    """How often the sensor was evaluated in vain since Dagster was started."""
    found = dev.graphql(
        """{ sensorOrError(sensorSelector: {
          repositoryLocationName: "orchestrator", repositoryName: "__repository__",
          sensorName: "arrived_order_files"
        }) { ... on Sensor { sensorState { ticks(limit: 3) { status timestamp } } } } }"""
    )
    latest = found["sensorOrError"]["sensorState"]["ticks"]
    return sum(tick["status"] == "SKIPPED" for tick in latest)


def daemon(dev: Dev) -> psutil.Process:
    """The process of Dagster that evaluates the sensors."""
    [daemon] = (
        process
        for process in psutil.Process(dev.process.pid).children(recursive=True)
        if re.search(r"dagster\._daemon .*\brun\b", command(process))
    )
    return daemon
