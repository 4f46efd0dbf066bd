"""A stand-in for the Cloud Run Admin API, which executes jobs as processes of this machine.

It has the parts that `PipesCloudRunJobClient` uses, with the paths and the JSON of Google's:
https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.jobs
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from local_cloud.processes import inherited_environment

_OF_A_JOB = re.compile(r"(projects/[^/]+/locations/[^/]+/jobs/([^/:]+))(:run|/executions)")
TIME_TO_KILL = 10.0  # seconds between SIGTERM and SIGKILL


@dataclass
class Job:
    """A job, and how it is executed.

    Attributes:
        command: The command of its container.
        directory: The working directory of its container.
        starts_after: Seconds that an execution is pending.
        ends_after: Seconds after its process, until the API says that an execution has ended.
        problem: Why no container starts; None if it does.
        retries_after: Seconds after a task has failed, until Google executes it again.
        parallelism: How many tasks run at the same time.
        max_retries: How often Google executes a failed task again.
        environment: Environment variables of its container.
        output: The file descriptor of what it prints; by default, that of this process.
    """

    command: Sequence[str]
    directory: Path | None = None
    starts_after: float = 0.0
    ends_after: float = 0.3
    problem: str | None = None
    retries_after: float = 2.0
    parallelism: int = 10
    max_retries: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    output: int | None = None


class Task:
    """A task of an execution, which runs in a process.

    Args:
        index: Its index, from 0.

    Attributes:
        index: Its index, from 0.
        process: Its process, while it is running.
        state: `pending`, `running`, `succeeded`, `failed` or `cancelled`.
        retries: How often Google has started it again.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.state = "pending"
        self.retries = 0
        self.message = ""
        self._lock = threading.Lock()  # guards the process, whose ID may be another's after its end

    def run(
        self,
        command: Sequence[str],
        timeout: float,
        is_cancelled: threading.Event,
        **options: Any,
    ) -> int:
        """Run a process until its end, and end what it leaves.

        Args:
            command: The command.
            timeout: After how many seconds it is terminated.
            is_cancelled: Set if it is to be terminated at once.
            options: As for `subprocess.Popen`.

        Returns:
            Its status.
        """
        with self._lock:
            # A process group of its own, to be stopped as a whole.
            self.process = process = subprocess.Popen(command, start_new_session=True, **options)
        if is_cancelled.is_set():  # before there was a process
            self.terminate()
        limit = threading.Timer(timeout, self._time_out)
        limit.daemon = True
        limit.start()
        try:
            return process.wait()
        finally:
            limit.cancel()
            self.send(signal.SIGKILL)
            with self._lock:
                self.process = None

    def terminate(self) -> None:
        """Terminate its process, which has ten seconds until it is killed."""
        with self._lock:
            if self.process is not None:
                self.process.terminate()
                killing = threading.Timer(TIME_TO_KILL, self._kill, [self.process])
                killing.daemon = True
                killing.start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its process and the children of that, if they are running.

        Args:
            number: The signal.
        """
        with self._lock:
            if self.process is not None:
                # No process of the group is left: Linux raises the first error, macOS the second.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, number)

    def _time_out(self) -> None:
        self.message = "The configured timeout was reached."
        self.terminate()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if self.process is process:
            self.send(signal.SIGKILL)

    def condition(self, state: str | None = None) -> dict[str, str]:
        """What the API says of its end, or of that of its execution.

        Args:
            state: The state of its execution; None for its own.
        """
        state = state or self.state
        condition = {
            "type": "Completed",
            "message": self.message,
            "state": {
                "succeeded": "CONDITION_SUCCEEDED",
                "failed": "CONDITION_FAILED",
                "cancelled": "CONDITION_FAILED",
            }.get(state, "CONDITION_RECONCILING"),
        }
        reasons = {"cancelled": "CANCELLED", "failed": "NON_ZERO_EXIT_CODE"}
        return condition | ({"executionReason": reasons[state]} if state in reasons else {})


class Execution:
    """An execution of a job.

    Args:
        name: Its full name.
        job: The job.
        overrides: What differs from the job, as the request says.

    Attributes:
        name: Its full name.
        variables: The environment variables that Dagster has set.
        args: The arguments that Dagster has set.
        tasks: Its tasks.
        state: `running`, `succeeded`, `failed` or `cancelled`, as the API sees it.
    """

    def __init__(self, name: str, job: Job, overrides: dict[str, Any]) -> None:
        [container] = overrides["containerOverrides"]
        self.name = name
        self.variables: list[dict[str, str]] = container["env"]
        self.args: list[str] = container.get("args", [])
        self.tasks = [Task(index) for index in range(overrides["taskCount"])]
        self.state = "running"
        self._job = job
        self._timeout = float(overrides["timeout"].removesuffix("s"))
        self._created = datetime.now(UTC)
        self._completed: datetime | None = None
        self._is_cancelled = threading.Event()
        threading.Thread(target=self._execute, daemon=True).start()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._is_cancelled.is_set()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, also for the API."""
        return self._completed is not None

    def cancel(self) -> None:
        """Cancel it: its processes get ten seconds."""
        self._is_cancelled.set()
        for task in self.tasks:
            task.terminate()

    def stop(self) -> None:
        """Kill its processes."""
        self._is_cancelled.set()
        for task in self.tasks:
            task.send(signal.SIGKILL)

    def to_json(self) -> dict[str, Any]:
        """As the API shows it."""
        counts = Counter(task.state for task in self.tasks)
        failed = next((task for task in self.tasks if task.state == "failed"), self.tasks[0])
        times = {"completionTime": _time(self._completed)} if self._completed else {}
        return {
            "name": self.name,
            "job": self.name.partition("/executions/")[0],
            "createTime": _time(self._created),
            **times,
            "taskCount": len(self.tasks),
            "parallelism": self._job.parallelism,
            "template": {
                "containers": [{"env": self.variables, "args": self.args}],
                "maxRetries": self._job.max_retries,
            },
            "conditions": [failed.condition(self.state)],
            "runningCount": counts["running"],
            "succeededCount": counts["succeeded"],
            "failedCount": counts["failed"],
            "cancelledCount": counts["cancelled"],
            "retriedCount": sum(task.retries > 0 for task in self.tasks),
            "logUri": f"https://console.cloud.google.com/logs/viewer?execution={self.name}",
        }

    def tasks_to_json(self) -> list[dict[str, Any]]:
        """Its tasks, as the API shows them."""
        return [
            {
                "name": f"{self.name}/tasks/{self.name.rpartition('/')[2]}-task{task.index}",
                "index": task.index,
                "conditions": [task.condition()],
                "retried": task.retries,
            }
            for task in self.tasks
        ]

    def _execute(self) -> None:
        self._is_cancelled.wait(self._job.starts_after)
        with ThreadPoolExecutor(self._job.parallelism) as executor:
            list(executor.map(self._run_task, self.tasks))
        time.sleep(self._job.ends_after)
        states = {task.state for task in self.tasks}
        self.state = next(each for each in ("cancelled", "failed", "succeeded") if each in states)
        self._completed = datetime.now(UTC)

    def _run_task(self, task: Task) -> None:
        status = 1
        while not self.is_cancelled and self._job.problem is None:
            status = self._run_container(task)
            if status == 0 or task.retries == self._job.max_retries:
                break
            if self._is_cancelled.wait(self._job.retries_after):
                break
            task.retries += 1
        name = f"Task {self.name.rpartition('/')[2]}-task{task.index}"
        if self._job.problem is not None:
            task.message = self._job.problem
        elif task.message:
            pass
        elif status == -9:
            task.message = f"{name} failed with message: Memory limit of 512 MiB exceeded."
        elif status != 0:
            task.message = f"{name} failed with exit code: {status}."
        task.state = "succeeded" if status == 0 else "failed"
        if self.is_cancelled:
            task.state = "cancelled"

    def _run_container(self, task: Task) -> int:
        """Run the process until it ends, its time is over, or it is cancelled; its status."""
        own = {each["name"]: each.get("value", "") for each in self.variables}
        task.state = "running"
        task.message = ""
        try:
            return task.run(
                [*self._job.command, *self.args],
                self._timeout,
                self._is_cancelled,
                env={
                    **inherited_environment(),
                    "CLOUD_RUN_JOB": self.name.split("/")[5],
                    **self._job.environment,
                    **own,
                    "CLOUD_RUN_EXECUTION": self.name.rpartition("/")[2],
                    "CLOUD_RUN_TASK_INDEX": str(task.index),
                    "CLOUD_RUN_TASK_COUNT": str(len(self.tasks)),
                    "CLOUD_RUN_TASK_ATTEMPT": str(task.retries),
                },
                cwd=self._job.directory,
                stdin=subprocess.DEVNULL,
                stdout=self._job.output,
                stderr=self._job.output,
            )
        except OSError as error:
            task.message = f"The container did not start: {error}."
            return 1


def _time(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


class RunAdmin:
    """The running stand-in.

    Args:
        url: Its URL.
        jobs: The jobs, by name.

    Attributes:
        url: Its URL.
        jobs: The jobs, by name.
        executions: All executions, the latest last.
    """

    def __init__(self, url: str, jobs: dict[str, Job]) -> None:
        self.url = url
        self.jobs = jobs
        self.executions: list[Execution] = []
        self._lock = threading.Lock()  # guards the list

    def handle(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """The status and the body of the response to a request.

        Args:
            method: The method of the request.
            path: Its path, with its query.
            body: Its body.
        """
        path = path.partition("?")[0].removeprefix("/v2/")
        match = _OF_A_JOB.fullmatch(path)
        if match and match[2] in self.jobs:
            parent, job, what = match.groups()
            return 200, self._run(parent, job, body) if what == ":run" else self._list(parent)
        if method == "GET" and path.endswith("/tasks"):
            found = self._find(path.removesuffix("/tasks"))
            return 200, {"tasks": found.tasks_to_json() if found else []}
        execution = self._find(re.sub(":cancel$", "", path))
        if execution is None:
            return 404, _error(404, "NOT_FOUND", f"Resource {path!r} was not found.")
        if method == "GET":
            return 200, execution.to_json()
        if execution.has_ended:
            return 400, _error(400, "FAILED_PRECONDITION", "The execution has ended.")
        execution.cancel()
        return 200, _operation(execution)

    def _run(self, parent: str, job: str, body: bytes) -> dict[str, Any]:
        with self._lock:
            name = f"{parent}/executions/{job}-{len(self.executions):05}"
            overrides = json.loads(body)["overrides"]
            self.executions.append(Execution(name, self.jobs[job], overrides))
            return _operation(self.executions[-1])

    def _list(self, parent: str) -> dict[str, Any]:
        with self._lock:
            found = [each for each in self.executions if each.name.startswith(f"{parent}/")]
            return {"executions": [each.to_json() for each in reversed(found)]}

    def _find(self, name: str) -> Execution | None:
        with self._lock:
            return next((each for each in self.executions if each.name == name), None)


def _operation(execution: Execution) -> dict[str, Any]:
    kind = "type.googleapis.com/google.cloud.run.v2.Execution"
    return {
        "name": f"{execution.name.partition('/jobs/')[0]}/operations/1",
        "metadata": {"@type": kind, **execution.to_json()},
    }


def _error(code: int, status: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted


@contextmanager
def run_admin(jobs: dict[str, Job]) -> Iterator[RunAdmin]:
    """Serve the API during the block. At its end, all executions are killed.

    Args:
        jobs: The jobs, by name.

    Yields:
        What it serves.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "Origin" in self.headers:  # of a web page, which must not run programs here
                status, response = 403, _error(403, "PERMISSION_DENIED", "Web pages may not.")
            else:
                status, response = admin.handle(self.command, self.path, body)
            content = json.dumps(response).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        admin = RunAdmin(f"http://127.0.0.1:{server.server_port}", jobs)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield admin
        finally:
            server.shutdown()
            thread.join()
            for execution in admin.executions:
                execution.stop()
