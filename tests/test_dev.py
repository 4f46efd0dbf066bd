"""`just dd`: Dagster's web page beside the local cloud, following edits."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Render, start

_PATIENCE = 120  # seconds
_FUNCTION_STARTED = "The function was edited: starting it  "  # and how long it took


class Dev:
    """A running `just dd`, and what it has printed."""

    def __init__(self, project: Path, process: "subprocess.Popen[str]") -> None:
        self.project = project
        self.process = process
        self.printed = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line

    def address(self, name: str) -> str:
        """The address that stands behind `name`, once it is printed."""
        eventually(lambda: re.search(rf"^{name} +(\S+)$", self.printed, re.MULTILINE), self)
        [address] = re.findall(rf"^{name} +(\S+)$", self.printed, re.MULTILINE)
        return str(address)

    def graphql(self, query: str) -> Any:
        """Dagster's answer to a query."""
        request = urllib.request.Request(
            f"{self.address('Dagster')}/graphql",
            data=json.dumps({"query": query}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["data"]

    def stop(self) -> None:
        """Stop it, by Ctrl-C, if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(60)
        self._reader.join(60)


def eventually(holds: Callable[[], Any], dev: Dev) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        assert dev.process.poll() is None, dev.printed
        assert time.monotonic() < deadline, dev.printed
        time.sleep(0.2)


@pytest.fixture(scope="module")
def dev(render: Render) -> Iterator[Dev]:
    """A project of which `just dd` runs."""
    project = render()
    dev = Dev(project, start("uv", "run", "just", "dd", cwd=project))
    try:
        dev.address("Dagster")
        yield dev
    finally:
        dev.stop()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def materialize(dev: Dev) -> list[str]:
    """Materialize the asset as the web page does; return the run's log lines."""
    launched = dev.graphql(
        """
        mutation {
          launchPipelineExecution(executionParams: {
            mode: "default",
            selector: {
              repositoryLocationName: "orchestrator", repositoryName: "__repository__",
              pipelineName: "__ASSET_JOB", assetSelection: [{path: ["people"]}]
            }
          }) { __typename ... on LaunchRunSuccess { run { runId } } }
        }
        """
    )["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    query = f"""{{
      runOrError(runId: "{launched["run"]["runId"]}") {{ ... on Run {{
        status
        eventConnection {{ events {{
          __typename
          ... on MessageEvent {{ message }}
          ... on ExecutionStepFailureEvent {{ error {{ message causes {{ message }} }} }}
        }} }}
      }} }}
    }}"""
    eventually(lambda: dev.graphql(query)["runOrError"]["status"] in ("SUCCESS", "FAILURE"), dev)
    run = dev.graphql(query)["runOrError"]
    events = run["eventConnection"]["events"]
    failures = [event["error"] for event in events if event.get("error")]
    assert run["status"] == "SUCCESS", f"{failures}\n{dev.printed}"
    return [event["message"] for event in events if event["__typename"] == "LogMessageEvent"]


def test_an_edit_of_the_function_is_followed(dev: Dev) -> None:
    assert "Cloud function version: 0.1.0" in materialize(dev)

    edit(dev.project / "cloud_function" / "main.py", '"0.1.0"', '"0.2.0"')
    eventually(lambda: _FUNCTION_STARTED in dev.printed, dev)

    assert "Cloud function version: 0.2.0" in materialize(dev)


def test_an_edit_of_the_definitions_is_followed(dev: Dev) -> None:
    [definition] = dev.project.glob("orchestrator/src/*/defs/people.py")

    edit(definition, '"""Fake people', '"""Invented people')

    def described() -> bool:
        [asset] = dev.graphql("{ assetNodes { description } }")["assetNodes"]
        return str(asset["description"]).startswith("Invented people")

    eventually(described, dev)


def test_a_broken_edit_is_reported_and_a_mended_one_followed(dev: Dev) -> None:
    main = dev.project / "cloud_function" / "main.py"
    [definition] = dev.project.glob("orchestrator/src/*/defs/people.py")

    for broken in (main, definition):
        edit(broken, "\nimport ", "\nimport no_such_module\nimport ")
    eventually(lambda: "Dagster could not load the definitions" in dev.printed, dev)
    eventually(lambda: "It starts again with the next edit" in dev.printed, dev)

    started = dev.printed.count(_FUNCTION_STARTED)
    for mended in (main, definition):
        edit(mended, "\nimport no_such_module\n", "\n")

    def loaded() -> bool:
        return len(dev.graphql("{ assetNodes { description } }")["assetNodes"]) == 1

    eventually(loaded, dev)
    eventually(lambda: dev.printed.count(_FUNCTION_STARTED) > started, dev)
    materialize(dev)


def test_the_tables_are_kept_in_the_project(dev: Dev) -> None:
    materialize(dev)

    lake = Path(dev.address("Data lake"))
    assert lake.is_relative_to(dev.project)
    assert (lake / "people" / "_delta_log").is_dir()


def test_a_server_that_ends_is_reported_and_ends_it_all(dev: Dev) -> None:
    [emulator] = [
        process
        for process in psutil.Process(dev.process.pid).children(recursive=True)
        if process.name().startswith("fake-gcs-server")
    ]

    emulator.kill()

    assert dev.process.wait(60) == 1
    dev.stop()
    assert "Failed: The storage emulator has ended" in dev.printed


@pytest.mark.parametrize("settings", ["LAKE_URI=gs://the-real-lake", "FUNCTION_URL=", "LAKE_URI"])
def test_a_lake_without_a_function_to_call_is_refused(settings: str, render: Render) -> None:
    project = render()
    (project / "orchestrator" / ".env").write_text(settings)

    with start("uv", "run", "just", "dd", cwd=project) as process:
        printed, _ = process.communicate(timeout=_PATIENCE)

    assert process.returncode == 1
    assert "orchestrator/.env names no function to call. Set FUNCTION_URL there" in printed
