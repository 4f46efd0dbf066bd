"""A debugger attaches to the function, and stops in a task.

The client speaks the debug adapter protocol:
https://microsoft.github.io/debug-adapter-protocol/specification
"""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Render, Workshop, replace
from dev import PATIENCE, Dev, running_dev


class Debugger:
    """A client of a debug adapter."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._number = 0
        self._waiting: list[dict[str, Any]] = []

    def request(self, command: str, **arguments: Any) -> None:
        """Send a request, without waiting for its response."""
        self._number += 1
        message = {"seq": self._number, "type": "request", "command": command}
        body = json.dumps({**message, "arguments": arguments}).encode()
        self._connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    def wait_for(self, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message that matches."""
        while True:
            header = self._stream.readline()
            assert header, "the debug adapter has closed the connection"
            self._stream.readline()
            message = json.loads(self._stream.read(int(header.split(b":")[1])))
            if matches(message):
                return dict(message)

    def response(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request; return the body of its response."""
        self.request(command, **arguments)
        response = self.wait_for(lambda message: message.get("command") == command)
        assert response["success"], response
        return dict(response.get("body") or {})

    def stack(self) -> list[str]:
        """Wait until the program stops; return the functions of its stack."""
        event = self.wait_for(lambda message: message.get("event") == "stopped")
        thread = event["body"]["threadId"]
        frames = self.response("stackTrace", threadId=thread)["stackFrames"]
        return [f"{Path(frame['source']['path']).name}:{frame['name']}" for frame in frames]


@contextmanager
def attached(port: int, breakpoints: dict[Path, int] | None = None) -> Iterator[Debugger]:
    """A debugger that is attached to a port, with a breakpoint in a line of some files."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        debugger = Debugger(connection)
        debugger.response("initialize", adapterID="tests", pathFormat="path")
        debugger.request("attach", justMyCode=False)
        debugger.wait_for(lambda message: message.get("event") == "initialized")
        for path, line in (breakpoints or {}).items():
            found = debugger.response(
                "setBreakpoints", source={"path": str(path)}, breakpoints=[{"line": line}]
            )
            assert found["breakpoints"][0]["verified"]
        debugger.request("configurationDone")
        yield debugger
        debugger.request("continue", threadId=0)
        debugger.response("disconnect", terminateDebuggee=False)


def launch(dev: Dev) -> Callable[[], dict[str, Any]]:
    """Launch a run of `people`; return a function that waits for its end."""
    runs: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: runs.append(dev.launch("people")))
    thread.start()

    def wait() -> dict[str, Any]:
        thread.join(PATIENCE)
        return runs[0]

    return wait


@pytest.fixture(scope="module")
def sandbox(render: Render, workshop: Workshop) -> Path:
    """A project."""
    return workshop(render())


def test_a_breakpoint_of_the_editor_in_a_task_is_hit(sandbox: Path) -> None:
    task = sandbox / "cloud_function" / "tasks" / "people.py"
    [line] = [
        number
        for number, text in enumerate(task.read_text().splitlines(), start=1)
        if "location = table_location" in text
    ]

    with running_dev(sandbox, "--debug") as dev:
        port = int(dev.address("Debugger").rpartition(":")[2])
        with attached(port, {task: line}) as debugger:
            ended = launch(dev)
            assert debugger.stack()[0] == "people.py:run"
        assert ended()["status"] == "SUCCESS"


def test_breakpoint_in_a_task_says_how_to_attach_and_stops_there(sandbox: Path) -> None:
    task = "    dl_bucket = event_input(event"
    replace(sandbox / "cloud_function" / "tasks" / "people.py", task, f"    breakpoint()\n{task}")
    address = re.compile(r"A breakpoint waits for a debugger at 127\.0\.0\.1:(\d+)\.")

    with running_dev(sandbox) as dev:
        ended = launch(dev)
        dev.eventually(lambda: address.search(dev.printed))
        with attached(int(address.findall(dev.printed)[0])) as debugger:
            assert debugger.stack()[0] == "people.py:run"
        assert ended()["status"] == "SUCCESS"
