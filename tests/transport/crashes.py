"""An instance of Dagster whose steps and runs are killed, and what is known of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

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
    """An instance in a folder, whose runs are processes that call something at `url`."""

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
        """How each execution of the task has ended, or that it has started."""
        return [each.state for each in self.executions()]

    def kill_step(self) -> None:
        """Kill the process of the latest execution of the step."""
        pids = (self.folder / "steps").read_text().split()
        os.kill(int(pids[-1]), signal.SIGKILL)

    def kill_run(self, run_id: str) -> None:
        """Kill the processes of a run at once."""
        worker = psutil.Process(int((self.folder / f"worker-{run_id}").read_text()))
        for process in (worker, *worker.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it has ended with its parent
                process.kill()

    def fail(self, run_id: str) -> None:
        """Record that a run has failed, as Dagster's monitoring does if its process is gone."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        self.instance.report_run_failed(run, "The process of the run is gone.")

    def status(self, run_id: str) -> str:
        """The status of a run."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value

    def wait(self, run_id: str) -> str:
        """Wait until a run has ended; return its status."""
        ends = ("SUCCESS", "FAILURE", "CANCELED")
        deadline = time.monotonic() + 180
        while self.status(run_id) not in ends and time.monotonic() < deadline:
            time.sleep(0.01)
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
