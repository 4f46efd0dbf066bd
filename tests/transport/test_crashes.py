"""What becomes of calls whose step or run crashes: followed if they run, never made twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from conftest import (
    days,
    environment_without_pytest,
    eventually,
    serve,
    server_at,
)
from faults import FaultProxy, Request, Response
from local_cloud.cloud import CLOUD_FUNCTION

JOBS = Path(__file__).with_name("crashing_jobs.py")
DAGSTER_YAML = """
telemetry:
  enabled: false
run_coordinator:
  module: dagster._core.run_coordinator.default_run_coordinator
  class: DefaultRunCoordinator
run_launcher:
  module: crashing_jobs
  class: ProcessLauncher
run_monitoring:
  enabled: true
  poll_interval_seconds: 1
  max_resume_run_attempts: 3
"""


@dataclass(frozen=True)
class Execution:
    """An execution of the task, by the ledger that it writes."""

    what: str
    state: str


class Dagster:
    """An instance in a folder, whose runs are processes that call the function at `url`."""

    def __init__(self, folder: Path, url: str, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.url = url
        self.environment = environment
        (self.folder / "dagster.yaml").write_text(DAGSTER_YAML)
        (self.folder / "ledger").touch()
        self.instance = dg.DagsterInstance.from_config(str(self.folder))

    def launch(self, asset: str, *days: str, **settings: Any) -> str:
        """Launch a run that materializes an asset; return its ID."""
        config = {"ops": {asset: {"config": {"url": self.url, **settings}}}}
        tags = {}
        if days:
            ends = ("start", days[0]), ("end", days[-1])
            tags = {f"dagster/asset_partition_range_{end}": key for end, key in ends}
        subprocess.run(
            [
                *(sys.executable, "-m", "dagster", "job", "launch"),
                *("-f", str(JOBS), "-j", f"call_{asset}"),
                *("--config-json", json.dumps(config), "--tags", json.dumps(tags)),
            ],
            env=self.environment,
            check=True,
        )
        [run] = self.instance.get_runs(limit=1)
        return run.run_id

    def reexecute(self, run_id: str) -> str:
        """Re-execute a run from failure, and wait for the new one; return its ID."""
        subprocess.run(
            [sys.executable, str(JOBS), run_id],
            env=self.environment,
            check=True,
        )
        [run] = self.instance.get_runs(limit=1)
        assert run.parent_run_id == run_id
        return run.run_id

    @contextmanager
    def monitoring(self) -> Iterator[None]:
        """Dagster's daemon, which resumes runs whose process is gone."""
        command = [sys.executable, "-m", "dagster._daemon", "run", "-f", str(JOBS)]
        with subprocess.Popen(command, env=self.environment, start_new_session=True) as daemon:
            try:
                yield
            finally:
                os.killpg(daemon.pid, signal.SIGKILL)

    def executions(self) -> list[Execution]:
        """What the task has done, in the order in which it started."""
        found: dict[str, Execution] = {}
        for line in (self.folder / "ledger").read_text().splitlines():
            what, execution, state, *_ = json.loads(line)
            found[execution] = Execution(what, state)
        return list(found.values())

    def states(self) -> list[str]:
        return [each.state for each in self.executions()]

    def kill_step(self) -> None:
        """Kill the process of the latest execution of the step."""
        pids = (self.folder / "steps").read_text().split()
        os.kill(int(pids[-1]), signal.SIGKILL)

    def kill_run(self, run_id: str) -> None:
        """Kill the processes of a run at once."""
        worker = psutil.Process(int((self.folder / f"worker-{run_id}").read_text()))
        for process in (worker, *worker.children(recursive=True)):
            process.kill()

    def fail(self, run_id: str) -> None:
        """Record that a run has failed, as Dagster's monitoring does if its process is gone."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        self.instance.report_run_failed(run, "The process of the run is gone.")

    def status(self, run_id: str) -> str:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value

    def wait(self, run_id: str) -> str:
        """Wait until a run has ended; return its status."""
        ends = ("SUCCESS", "FAILURE", "CANCELED")
        eventually(lambda: self.status(run_id) in ends, 60)
        return self.status(run_id)

    def handles(self, run_id: str) -> int:
        """How often a run has recorded where its calls store their messages."""
        return sum(
            " store their messages in " in (entry.message or "")
            for entry in self.instance.all_logs(run_id)
        )

    def lines(self, run_id: str) -> Counter[str]:
        """How often each line of the task is in the log of a run."""
        return Counter(
            entry.user_message.split("] ")[-1]
            for entry in self.instance.all_logs(run_id)
            if entry.dagster_event is None and " line " in entry.user_message
        )

    def materializations(self, asset: str) -> Counter[str | None]:
        """How often each partition was materialized."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=1_000).records
        return Counter(record.partition_key for record in records)


@pytest.fixture
def dagster(tmp_path: Path, emulator: Mapping[str, str], calls: FaultProxy) -> Iterator[Dagster]:
    environment = {
        **environment_without_pytest(),
        "DAGSTER_HOME": str(tmp_path),
        "CRASHING_FOLDER": str(tmp_path),
        "PYTHONPATH": str(JOBS.parent),
    }
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("CRASHING_FOLDER", str(tmp_path))
        dagster = Dagster(tmp_path, calls.url, environment)
        yield dagster
        for pid in (tmp_path / "steps").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def forward_after(seconds: float) -> Callable[[Request], Response]:
    """Send the request to the server late, also if the client is gone."""

    def fault(request: Request) -> Response:
        time.sleep(seconds)
        return request.forward()

    return fault


def lines(what: str, count: int) -> dict[str, int]:
    """The lines of one execution of the task."""
    return {f"{what} line {number}": 1 for number in range(count)}


def test_a_step_that_is_killed_follows_its_call(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=8, pause=1.0)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(run_id) == lines("one", 8)
    assert dagster.materializations("one") == {None: 1}


def test_a_step_that_is_killed_again_and_again_follows_its_call(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=28, pause=1.0)
    for count in range(12):
        eventually(lambda: dagster.handles(run_id) == count + 1)  # noqa: B023  # called here
        dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(run_id) == lines("one", 28)


def test_a_call_that_ends_before_its_step_is_executed_again_is_not_made_again(
    dagster: Dagster,
) -> None:
    run_id = dagster.launch("one", lines=2, pause=1.0)
    eventually(lambda: dagster.states() == ["started"])
    dagster.kill_run(run_id)
    eventually(lambda: dagster.states() == ["ended"])
    dagster.fail(run_id)

    again = dagster.reexecute(run_id)

    assert dagster.status(again) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(again) == lines("one", 2)  # a log of its own
    assert dagster.materializations("one") == {None: 1}


def test_a_run_that_is_killed_is_followed_by_its_re_execution(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=12, pause=1.0)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)
    dagster.kill_run(run_id)
    dagster.fail(run_id)

    again = dagster.reexecute(run_id)

    assert dagster.status(again) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(again) == lines("one", 12)
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_starts_after_its_step_was_killed_is_not_made_twice(
    dagster: Dagster, calls: FaultProxy
) -> None:
    calls.fail(forward_after(6.0))
    run_id = dagster.launch("one", lines=2, pause=0.5)
    eventually(lambda: len(calls.seen) == 1)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    time.sleep(8)
    assert dagster.states() == ["ended"]
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_failed_is_made_again(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=1, pause=0.1, failures=1)

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["failed", "ended"]


def test_a_call_that_fails_after_its_step_was_killed_is_made_again(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=3, pause=1.0, failures=1)
    eventually(lambda: dagster.states() == ["started"])

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["failed", "ended"]
    assert dagster.materializations("one") == {None: 1}


def test_a_call_whose_function_was_killed_too_is_made_again(
    dagster: Dagster, emulator: Mapping[str, str]
) -> None:
    storage_url = emulator["STORAGE_EMULATOR_HOST"]
    with serve(CLOUD_FUNCTION / "main.py", storage_url, HEARTBEAT_INTERVAL="1") as url:
        dagster.url = url
        run_id = dagster.launch("one", lines=5, pause=1.0)
        eventually(lambda: dagster.states() == ["started"])

        for worker in server_at(url).children():
            worker.kill()
        dagster.kill_step()

        assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["started", "ended"]
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_is_known_to_be_dead_is_not_followed_again(
    dagster: Dagster, emulator: Mapping[str, str]
) -> None:
    storage_url = emulator["STORAGE_EMULATOR_HOST"]
    with serve(CLOUD_FUNCTION / "main.py", storage_url, HEARTBEAT_INTERVAL="1") as url:
        dagster.url = url
        run_id = dagster.launch("one", lines=6, pause=1.0)
        eventually(lambda: dagster.states() == ["started"])
        for worker in server_at(url).children():
            worker.kill()
        dagster.kill_step()
        eventually(lambda: dagster.states() == ["started", "started"])

        dagster.kill_step()

        assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["started", "ended"]
    texts = [entry.user_message for entry in dagster.instance.all_logs(run_id)]
    assert sum("has failed, so it is made again" in text for text in texts) == 1


def test_identical_calls_are_distinguished(dagster: Dagster) -> None:
    run_id = dagster.launch("one", count=3, lines=1, pause=2.0)
    eventually(lambda: dagster.states() == ["ended", "started"])

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"] * 3


def test_a_call_of_a_step_that_failed_is_made_again(dagster: Dagster) -> None:
    run_id = dagster.launch("one", asset_failures=1, lines=1, pause=0.1)

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended", "ended"]


def test_a_call_that_was_cancelled_with_its_run_is_made_again(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=6, pause=1.0)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)
    dagster.instance.run_launcher.terminate(run_id)
    assert dagster.wait(run_id) == "CANCELED"

    again = dagster.reexecute(run_id)

    assert dagster.status(again) == "SUCCESS"
    assert dagster.states() == ["failed", "ended"]


def test_a_fan_out_that_is_killed_makes_each_call_once(dagster: Dagster) -> None:
    keys = days(40)
    run_id = dagster.launch("many", keys[0], keys[-1], lines=3, pause=0.5, max_in_flight=10)
    eventually(lambda: dagster.states().count("ended") >= 12)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert Counter(each.what for each in dagster.executions()) == dict.fromkeys(keys, 1)
    assert dagster.materializations("many") == dict.fromkeys(keys, 1)
    expected = {line: 1 for key in keys for line in lines(key, 3)}
    assert dagster.lines(run_id) == expected


def test_a_run_that_is_resumed_follows_its_call(dagster: Dagster) -> None:
    with dagster.monitoring():
        run_id = dagster.launch("one", lines=25, pause=1.0)
        eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)

        dagster.kill_run(run_id)

        assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(run_id) == lines("one", 25)
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_goes_on_after_its_run_was_terminated_is_followed(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=20, pause=1.0, forward_termination=False)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)
    dagster.instance.run_launcher.terminate(run_id)
    assert dagster.wait(run_id) == "CANCELED"

    again = dagster.reexecute(run_id)

    assert dagster.status(again) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(again) == lines("one", 20)
