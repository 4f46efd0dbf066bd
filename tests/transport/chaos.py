"""Calls while everything around them fails at random; then checks that each was done once.

Steps, runs, the function and the storage are killed, connections are cut in each direction,
requests get errors of Google Cloud, the storage is slow, and runs are terminated. Runs that end
without success are re-executed from failure until they succeed. The task writes into a ledger what
it does. At the end, the ledger, the event log and the processes are compared.

Runs in the orchestrator's environment of a rendered project: `make chaos`.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import gcp_pipes
import psutil
from conftest import environment_without_pytest, serve, server_at
from faults import FaultProxy, Request, Response, cut, cut_after, fault_proxy, respond
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from local_cloud.cloud import storage_emulator
from local_cloud.project import TASKS

JOBS = Path(__file__).with_name("chaos_jobs.py")
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2027-01-01").get_partition_keys()
MOST_RUNS = 60  # re-executions of one run, until it must have succeeded
LONGEST_RUN = 600.0  # seconds
CALM = 14.0  # seconds
STEPS = 50  # of a run, at most: each of them loads the definitions of all
FAULTY_SHARES = {"calls": 0.3, "reads": 0.08, "writes": 0.08}  # of the requests
ERRORS = (429, 500, 503, 504)
PLANTED = {  # defects, by the text that makes each of them: the chaos must find them
    "handle": (
        "orchestrator/step_calls.py",
        "        report_engine_event(",
        "        (lambda *_: 0)(",
    ),
    "504": ("orchestrator/http.py", "case 429 | 503:", "case 429 | 503 | 504:"),
}


@dataclass
class Execution:
    """What the ledger says of one execution of the task."""

    name: str
    what: str
    started: float
    ended: float | None = None
    state: str = "started"


@dataclass
class Stored:
    """What the messages under one key prefix say."""

    names: set[str] = field(default_factory=set)  # of executions that have materialized
    has_finished: bool = False  # without an exception


@dataclass
class Report:
    """What was done, and what is wrong."""

    calls: int = 0
    executions: int = 0
    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line, without the violations."""
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        return (
            f"{self.calls} calls, {self.executions} executions, {self.runs} runs, "
            f"{sum(self.faults.values())} faults ({faults}), {len(self.violations)} violations"
        )


class Faults:
    """Injects faults into the requests of a proxy, at random.

    Args:
        name: What is requested: `calls`, or `reads` or `writes` of the storage.
        seed: Decides which requests are faulty, and how.
        report: Where faults are counted.
    """

    def __init__(self, name: str, seed: int, report: Report) -> None:
        self._name = name
        self._random = random.Random(seed)  # it has to be repeatable
        self._lock = threading.Lock()  # guards the generator and the report
        self._report = report
        self._faults: dict[str, Callable[[Request], Response | None]] = {
            "cut before": cut,
            "cut after": cut_after,
            "slow": slow,
            "error": lambda request: respond(self._random.choice(ERRORS))(request),
        }
        if name == "calls":
            self._faults |= {"503, and starts later": late, "504, and starts": early}

    def inject(self, request: Request) -> Response | None:
        """Respond to a request, by a fault or not."""
        with self._lock:
            is_faulty = self._random.random() < FAULTY_SHARES[self._name]
            fault = self._random.choice(list(self._faults))
            if is_faulty:
                self._report.faults[f"{self._name}: {fault}"] += 1
        return self._faults[fault](request) if is_faulty else request.forward()


def slow(request: Request) -> Response:
    """Delay the request."""
    time.sleep(0.7)
    return request.forward()


def late(request: Request) -> Response:
    """Reject the request, and let it arrive later."""
    threading.Timer(1.0, request.forward).start()
    return Response(503)


def early(request: Request) -> Response:
    """Let the request arrive, and respond before the server does."""
    threading.Thread(target=request.forward).start()
    return Response(504)


class Chaos:
    """One round: a function, a storage and an instance, and what kills them.

    Args:
        folder: An empty folder.
        seed: Decides which faults are injected, and when.
        planted: A defect to put into the package, from `PLANTED`.
    """

    def __init__(self, folder: Path, seed: int, planted: str | None = None) -> None:
        self.report = Report()
        self._folder = folder
        self._random = random.Random(seed)  # it has to be repeatable
        self._seed = seed
        self._stack = ExitStack()
        self._kills: list[tuple[int, float]] = []  # of processes of the function, and when
        self._worker: subprocess.Popen[bytes] | None = None
        self._is_over = threading.Event()
        self._planted = planted

    def __enter__(self) -> "Chaos":
        """Start everything."""
        (self._folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        emulator = self._stack.enter_context(storage_emulator(self._folder / "storage"))
        self._storage_url = emulator["STORAGE_EMULATOR_HOST"]
        port = str(urlsplit(self._storage_url).port)
        self._storage = next(
            each for each in psutil.Process().children(recursive=True) if port in arguments(each)
        )
        self._stack.callback(self._stop_storage)
        writes = self._proxy("writes", self._storage_url)
        reads = self._proxy("reads", self._storage_url)
        url = self._stack.enter_context(
            serve(
                TASKS / "main.py",
                writes.url,
                MESSAGES_BUCKET=emulator["MESSAGES_BUCKET"],
                HEARTBEAT_INTERVAL="3",
                THREADS="40",
            )
        )
        self._function = server_at(url)
        self._calls = self._proxy("calls", url)
        self._environment = {
            **environment_without_pytest(),
            **emulator,
            "STORAGE_EMULATOR_HOST": reads.url,
            "DAGSTER_HOME": str(self._folder),
            "PYTHONPATH": os.pathsep.join([str(self._package()), str(JOBS.parent)]),
        }
        self._instance = self._stack.enter_context(
            dg.DagsterInstance.from_config(str(self._folder))
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self._stack.close()

    def _proxy(self, name: str, url: str) -> FaultProxy:
        proxy = self._stack.enter_context(fault_proxy(url))
        proxy.fail_always(Faults(name, self._seed, self.report).inject)
        return proxy

    def _package(self) -> Path:
        """The folder of the package for Dagster: a copy with the defect, if there is one."""
        source = Path(gcp_pipes.__path__[0])
        if self._planted is None:
            return source.parent
        file, before, after = PLANTED[self._planted]
        copy = shutil.copytree(source, self._folder / "planted" / "gcp_pipes")
        text = (copy / file).read_text()
        assert before in text
        (copy / file).write_text(text.replace(before, after))
        return copy.parent

    def make_calls(self, count: int) -> None:
        """Make single calls, each in a step of its own, many in a run."""
        names = [f"call_{number}" for number in range(count)]
        for first in range(0, count, STEPS):
            batch = names[first : first + STEPS]
            self._run("calls", set(batch), {"calls": batch})

    def make_fan_out(self, name: str, count: int) -> None:
        """Make calls for partitions, in one step."""
        keys = DAYS[:count]
        tags = {
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        }
        self._run("partitions", set(keys), {"fan_out": name, "tags": tags})

    def _run(self, job: str, expected: set[str], settings: dict[str, Any]) -> None:
        """Execute a job until it succeeds, with faults; then check."""
        settings = {"folder": str(self._folder), "url": self._calls.url, **settings}
        environment = {**self._environment, "CHAOS_SETTINGS": json.dumps(settings)}
        for name in ("ledger", "steps"):
            (self._folder / name).write_text("")
        self._is_over.clear()
        chaos = threading.Thread(target=self._kill_at_random)
        chaos.start()
        run_ids: list[str] = []
        try:
            for _ in range(MOST_RUNS):
                parent = run_ids[-1:]
                with subprocess.Popen(
                    [sys.executable, str(JOBS), job, *parent],
                    env=environment,
                    start_new_session=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                ) as self._worker:
                    with suppress(subprocess.TimeoutExpired):
                        self._worker.wait(LONGEST_RUN)
                    self._kill_group()
                run = next(iter(self._instance.get_runs(limit=1)), None)
                if run is None:
                    continue  # it was killed before it had created its run
                if not run.is_finished:
                    self._instance.report_run_failed(run, "The process of the run is gone.")
                if run.run_id in run_ids:
                    continue
                run_ids.append(run.run_id)
                if run.status is dg.DagsterRunStatus.SUCCESS:
                    break
            else:
                self.report.violations.append(f"{job} did not succeed in {MOST_RUNS} runs")
        finally:
            self._is_over.set()
            chaos.join()
        self.report.runs += len(run_ids)
        self.report.calls += len(expected)
        self._check(expected, run_ids)

    def _kill_group(self) -> None:
        assert self._worker is not None
        with suppress(ProcessLookupError):
            os.killpg(self._worker.pid, signal.SIGKILL)

    def _kill_at_random(self) -> None:
        """Kill something every few seconds, until the run is over."""
        actions: list[tuple[str, Callable[[], object], int]] = [
            ("SIGKILL of a step", self._kill_step, 8),
            ("SIGKILL of a run", self._kill_group, 1),
            ("SIGKILL of the function", self._kill_function, 4),
            ("SIGKILL of the storage", self._kill_storage, 2),
            ("terminated run", self._terminate, 1),
        ]
        names = [name for name, _, weight in actions for _ in range(weight)]
        kill = {name: action for name, action, _ in actions}
        for number in itertools.count(1):
            # Now and then long enough to follow a call of a dead function to its end.
            calm = self._random.uniform(2.0, 6.0) if number % 5 else CALM
            if self._is_over.wait(calm):
                return
            name = self._random.choice(names)
            with suppress(psutil.Error, ProcessLookupError, IndexError, ValueError):
                kill[name]()
                self.report.faults[name] += 1

    def _kill_step(self) -> None:
        self._random.choice(self._steps()).kill()

    def _steps(self) -> list[psutil.Process]:
        """The processes of steps that are alive."""
        alive = []
        for line in (self._folder / "steps").read_text().splitlines():
            pid, created = line.split()
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if process.create_time() == float(created):  # or else it is another one
                    alive.append(process)
        return alive

    def _kill_function(self) -> None:
        for worker in self._function.children():
            worker.kill()
            self._kills.append((worker.pid, time.time()))

    def _stop_storage(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._storage.kill()

    def _kill_storage(self) -> None:
        """Kill the storage, and start it again with its data."""
        command = self._storage.cmdline()
        self._storage.kill()
        time.sleep(0.3)
        self._storage = psutil.Popen(command, stderr=subprocess.DEVNULL)

    def _terminate(self) -> None:
        assert self._worker is not None
        # None if the next one has not been created yet: then nothing is terminated.
        [run] = [each for each in self._instance.get_runs(limit=1) if not each.is_finished]
        self._instance.report_run_canceling(run)
        self._worker.send_signal(signal.SIGINT)

    def _check(self, expected: set[str], run_ids: list[str]) -> None:
        """Compare the ledger, the event log and the processes."""
        say = self.report.violations.append
        deadline = time.monotonic() + 30
        while self._running() and time.monotonic() < deadline:
            time.sleep(0.1)
        executions = self._executions()
        stored = self._stored()
        finished = {name for each in stored.values() if each.has_finished for name in each.names}
        self.report.executions += len(executions)
        of_call = defaultdict(list)
        for name, execution in executions.items():
            of_call[execution.what].append(execution)
            if execution.ended is None:
                say(f"{execution.what}: execution {name} has not ended")
        for what in of_call.keys() - expected:
            say(f"{what} was executed, and no step had called for it")
        for what, several in of_call.items():
            for first, second in pairwise(sorted(several, key=lambda each: each.started)):
                if first.ended is None or second.started < first.ended:
                    problem = "was executed twice at the same time"
                elif first.name in finished:  # its messages say so, too: it was not killed before
                    problem = "was executed again after it had ended well"
                else:
                    continue
                say(f"{what} {problem}{self._history(what, several, run_ids)}")
        reported = defaultdict(set)
        for what, execution_id in self._materializations(run_ids):
            reported[what].add(execution_id)
            reporting = executions.get(execution_id)
            if reporting is None or reporting.what != what or reporting.state != "ended":
                say(f"{what} was materialized by {reporting}")
        for what in expected:
            if len(reported[what]) != 1:
                say(f"{what} was materialized by {len(reported[what])} executions")
        for process in self._steps():
            say(f"The process {process.pid} of a step has not ended")
        if self._calls.in_flight:
            say(f"{self._calls.in_flight} requests are in flight")
        for key_prefix, each in stored.items():
            if len(each.names) > 1:
                say(f"{key_prefix} has the messages of {len(each.names)} executions")
        for name in set().union(*reported.values()) - finished:
            say(f"The bucket has no messages by which {name} has finished, which was reported")

    def _running(self) -> bool:
        return bool(
            self._calls.in_flight
            or self._steps()
            or any(each.ended is None for each in self._executions().values())
        )

    def _executions(self) -> dict[str, Execution]:
        found: dict[str, Execution] = {}
        for line in (self._folder / "ledger").read_text().splitlines():
            what, name, state, now, process = json.loads(line)
            what = what.split("/")[-1]
            if state == "started":
                kills = [when for pid, when in self._kills if pid == process and when > now]
                found[name] = Execution(name, what, now, kills[0] if kills else None)
            else:
                found[name].state, found[name].ended = state, now
        return found

    def _materializations(self, run_ids: list[str]) -> Iterator[tuple[str, str]]:
        for run_id in run_ids:
            for entry in self._instance.all_logs(
                run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
            ):
                event = entry.asset_materialization
                if event is not None and "execution" in event.metadata:
                    what = event.partition or event.asset_key.to_user_string()
                    yield what, str(event.metadata["execution"].value)

    def _stored(self) -> dict[str, Stored]:
        """What the bucket says of executions, by key prefix."""
        found: dict[str, Stored] = defaultdict(Stored)
        client = storage.Client(
            project="local",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": self._storage_url},
        )
        for blob in client.list_blobs(self._environment["MESSAGES_BUCKET"]):
            key_prefix, _, name = blob.name.rpartition("/")
            if not name.endswith(".json"):
                continue
            for line in blob.download_as_text().splitlines():
                message = json.loads(line)
                params = message["params"] or {}
                if message["method"] == "report_asset_materialization":
                    found[key_prefix].names.add(params["metadata"]["execution"]["raw_value"])
                elif message["method"] == "closed":
                    found[key_prefix].has_finished = "exception" not in params
        return found

    def _history(self, what: str, executions: list[Execution], run_ids: list[str]) -> str:
        """What is known of a call, to find out why it was wrong."""
        lines = []
        for each in executions:
            lines += [
                (each.started, f"{each.name} starts"),
                (each.ended or 0.0, f"{each.name} ends"),
            ]
        lines += [(when, f"SIGKILL of the function's process {pid}") for pid, when in self._kills]
        for run_id in run_ids:
            for entry in self._instance.all_logs(run_id):
                text = entry.message or entry.user_message
                if entry.step_key == what or f"[{what}]" in text:
                    lines.append((entry.timestamp, f"{entry.run_id[:8]} {text[:300]}"))
        first, last = (limit(each.started for each in executions) for limit in (min, max))
        return "".join(
            f"\n    {when:.3f} {text}"
            for when, text in sorted(lines)
            if first - 5 < when < last + 60
        )


def arguments(process: psutil.Process) -> list[str]:
    """The command of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def chaos(seed: int, planted: str | None = None) -> Iterator[Chaos]:
    """A round in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder, Chaos(Path(folder), seed, planted) as running:
        yield running


def main() -> None:
    """Run rounds with several seeds, and print a report of each."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    arguments.add_argument("--calls", type=int, default=500)
    arguments.add_argument("--fan-outs", type=int, default=5)
    arguments.add_argument("--partitions", type=int, default=200)
    arguments.add_argument("--planted", choices=PLANTED)
    options = arguments.parse_args()
    violations = 0
    for seed in options.seeds:
        with chaos(seed, options.planted) as running:
            running.make_calls(options.calls)
            for number in range(options.fan_outs):
                running.make_fan_out(f"fan_out_{number}", options.partitions)
        print(f"Seed {seed}: {running.report}", *running.report.violations, sep="\n  ", flush=True)
        violations += len(running.report.violations)
    sys.exit(violations > 0)


if __name__ == "__main__":
    main()
