"""Serves a function for `just dev`, and starts it again after an edit or a crash."""

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

from local_cloud.calls import end_calls
from local_cloud.console import console, step
from local_cloud.debugged_function import HOOK
from local_cloud.debugging import PORT
from local_cloud.functions import function_server
from local_cloud.processes import ProcessError
from local_cloud.project import TASKS

# The log of gunicorn, which serves the function in a worker process, and starts another one if the
# worker ends.
_GUNICORN = re.compile(r"\[\d{4}-[^]]+\] \[\d+\] \[(?P<level>\w+)\] (?P<text>.*)")
_TIMEOUT_OF_DEBUGGED = "3600"  # seconds
_ENVIRONMENT = {"GUNICORN_LOG_LEVEL": "info", "PYTHONUNBUFFERED": "1"}
_WORKER_STARTED = re.compile(r"Booting worker with pid: \d+")
_WORKER_ENDED = re.compile(r"Worker \(pid:\d+\) (?P<reason>was sent \w+|exited with code \d+)")
_EXITED = "exited with code 0"  # which gunicorn does not log
_LIKELY_REASONS = {
    "was sent SIGKILL": "was sent SIGKILL, perhaps since the machine had no memory left",
    "was sent SIGSEGV": "was sent SIGSEGV: native code crashed",
}


class ServedFunction:
    """A served function, which can restart at the same URL.

    Args:
        folder: The folder of the function.
        storage: The variables that `cloud_storage` yielded.
        port: The port to listen on.
        debug_port: The port that a debugger can attach to.
        debug: Whether a debugger can attach at any time, and not only at a `breakpoint()`.

    Attributes:
        folder: The folder of the function.
        debug_port: The port that a debugger can attach to.
        settings: The variables that `cloud_function` yielded.
    """

    def __init__(
        self,
        folder: Path,
        storage: Mapping[str, str],
        port: int,
        debug_port: int,
        *,
        debug: bool = False,
    ) -> None:
        self.folder = folder
        self._title = "The function" if folder == TASKS else f"The function {folder.name}"
        self._storage = storage
        self._port = port
        self.debug_port = debug_port
        self._environment = {**storage, **_ENVIRONMENT, **HOOK, PORT: str(debug_port)}
        self._program = ["functions-framework"]
        if debug:
            self._environment["FUNCTION_TIMEOUT"] = _TIMEOUT_OF_DEBUGGED
            self._program = ["python", "-m", "local_cloud.debugged_function"]
        self._running = ExitStack()
        self._process: Popen[bytes] | None = None
        self.settings: dict[str, str] = {}

    def __enter__(self) -> "ServedFunction":
        """Start the function."""
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the function."""
        self._running.close()

    def reload(self) -> None:
        """Restart the function with its edited files; if that fails, print why."""
        self._restart(f"{self._title} was edited: restarting", "it was restarted after an edit")

    def restart_if_ended(self) -> None:
        """Start the function again if its server ended; if that fails, print why."""
        if self._process is not None and self._process.poll() is not None:
            reason = f"its server ended with status {self._process.returncode}"
            console.print(f"[red]{self._title} ended:[/red] {reason}.")
            self._restart(f"{self._title} is restarting", reason)

    def _start(self) -> None:
        output = _Output(self._on_worker_ended)
        served = function_server(self.folder, self._environment, self._port, output, self._program)
        self._process, self.settings = self._running.enter_context(served)
        self._running.callback(output.is_stopping.set)  # before the server is stopped

    def _restart(self, title: str, reason: str) -> None:
        self._process = None
        self._running.close()
        self._end_calls(reason)
        try:
            with step(title):
                self._start()
        except (ProcessError, OSError) as error:  # also if the folder was deleted
            console.print(f"[red]{error}[/red]. Edit it again to restart it.")

    def _on_worker_ended(self, reason: str) -> None:
        count = self._end_calls(reason)
        console.print(
            f"[red]{self._title} ended:[/red] {reason}. Calls in flight that failed: {count}. It "
            "was restarted."
        )

    def _end_calls(self, reason: str) -> int:
        try:
            return end_calls(self._storage, self.folder.name, reason)
        except (OSError, ValueError, LookupError) as error:  # the output must still be read
            console.print(f"[red]The calls in flight could not be ended:[/red] {error!r}")
            return 0


class _Output:
    """Prints the output of the function, and notices in gunicorn's log that a worker ended."""

    def __init__(self, on_worker_ended: Callable[[str], None]) -> None:
        self._on_worker_ended = on_worker_ended
        self._workers = 0  # how many were started
        self._reason = _EXITED
        self.is_stopping = threading.Event()

    def __call__(self, line: str) -> None:
        record = _GUNICORN.fullmatch(line)
        text = record["text"] if record else ""
        if match := _WORKER_ENDED.match(text):
            self._reason = match["reason"]
        elif _WORKER_STARTED.match(text):
            self._workers += 1
            if self._workers > 1 and not self.is_stopping.is_set():
                reason, self._reason = self._reason, _EXITED
                self._on_worker_ended(f"its process {_LIKELY_REASONS.get(reason, reason)}")
        elif record is None or record["level"] != "INFO":
            console.out(line)
