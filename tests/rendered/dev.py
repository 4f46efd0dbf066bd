"""A running `just dev`, and requests to its Dagster."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from conftest import replace, start

PATIENCE = 300  # seconds

# Printed after a reload, followed by its duration.
FUNCTION_STARTED = "The function was edited: restarting  "
DEFINITIONS_LOADED = "The definitions were edited: reloading  "

_REPOSITORY = """
repositoryLocationName: "orchestrator", repositoryName: "__repository__"
"""


def command(process: psutil.Process) -> str:
    """The command of a process; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class Dev:
    """A running `just dev`, and its output."""

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

    def eventually(self, holds: Callable[[], Any]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.2)

    def address(self, name: str) -> str:
        """The printed address of `name`."""
        self.eventually(lambda: re.search(rf"^{name} +(\S+)$", self.printed, re.MULTILINE))
        # They are printed again after each reload.
        [address] = set(re.findall(rf"^{name} +(\S+)$", self.printed, re.MULTILINE))
        return str(address)

    def edit_function(self, file: str, old: str, new: str) -> None:
        """Replace the one `old` in a file of the function, and wait for the restart."""
        started = self.printed.count(FUNCTION_STARTED)
        replace(self.project / "cloud_function" / file, old, new)
        self.eventually(lambda: self.printed.count(FUNCTION_STARTED) > started)

    def graphql(self, query: str) -> Any:
        """Dagster's response to a query."""
        request = urllib.request.Request(
            f"{self.address('Dagster')}/graphql",
            data=json.dumps({"query": query}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            result = json.load(response)
        assert "errors" not in result, result["errors"]
        return result["data"]

    def assets(self) -> set[str]:
        """The keys of all assets."""
        found = self.graphql("{ assetNodes { assetKey { path } } }")["assetNodes"]
        return {"/".join(asset["assetKey"]["path"]) for asset in found}

    def submit(self, asset: str) -> str:
        """Launch a run of an asset as the web page does; return its ID."""
        launched = self.graphql(
            f"""
            mutation {{
              launchPipelineExecution(executionParams: {{
                mode: "default",
                selector: {{
                  {_REPOSITORY}
                  pipelineName: "__ASSET_JOB", assetSelection: [{{path: ["{asset}"]}}]
                }}
              }}) {{ __typename ... on LaunchRunSuccess {{ run {{ runId }} }} }}
            }}
            """
        )["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def status(self, run_id: str) -> str:
        """The status of a run."""
        found = self.graphql(
            f"""{{ runOrError(runId: "{run_id}") {{ ... on Run {{ status }} }} }}"""
        )
        return str(found["runOrError"]["status"])

    def logs(self, run_id: str) -> list[str]:
        """The log lines of a run until now."""
        found = self.graphql(
            f"""{{ runOrError(runId: "{run_id}") {{ ... on Run {{
              eventConnection {{ events {{ ... on LogMessageEvent {{ message }} }} }}
            }} }} }}"""
        )
        events = found["runOrError"]["eventConnection"]["events"]
        return [event["message"] for event in events if "message" in event]

    def terminate(self, run_id: str) -> None:
        """Terminate a run as the web page does."""
        ended = self.graphql(f"""mutation {{ terminateRun(runId: "{run_id}") {{ __typename }} }}""")
        assert ended["terminateRun"]["__typename"] == "TerminateRunSuccess", ended

    def launch(self, asset: str) -> Any:
        """Materialize an asset as the web page does, and wait until the run ends.

        Returns:
            Its `runId`, its `status`, and its `events`, with `__typename`, and with `message` and
            `error` if they have them.
        """
        run_id = self.submit(asset)
        query = f"""{{
          runOrError(runId: "{run_id}") {{ ... on Run {{
            runId status
            eventConnection {{ events {{
              __typename
              ... on MessageEvent {{ message }}
              ... on ErrorEvent {{ error {{ message causes {{ message }} }} }}
            }} }}
          }} }}
        }}"""
        self.eventually(lambda: self.status(run_id) in ("SUCCESS", "FAILURE"))
        run = self.graphql(query)["runOrError"]
        return {**run, "events": run["eventConnection"]["events"]}

    def materialize(self, asset: str) -> list[str]:
        """Materialize an asset as the web page does; return the run's log lines."""
        run = self.launch(asset)
        failures = [event for event in run["events"] if event.get("error")]
        assert run["status"] == "SUCCESS", f"{failures}\n{self.printed}"
        return [
            event["message"] for event in run["events"] if event["__typename"] == "LogMessageEvent"
        ]

    def submit_backfill(self, asset: str, partition_keys: Sequence[str]) -> str:
        """Launch a backfill as the web page does; return its ID."""
        launched = self.graphql(
            f"""
            mutation {{
              launchPartitionBackfill(backfillParams: {{
                assetSelection: [{{path: ["{asset}"]}}],
                partitionNames: {json.dumps(list(partition_keys))}
              }}) {{ __typename ... on LaunchBackfillSuccess {{ backfillId }} }}
            }}
            """
        )["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def backfill_state(self, backfill_id: str) -> Any:
        """The `status` of a backfill, and its `runs`, each with an `id` and a `status`."""
        query = f"""{{
          partitionBackfillOrError(backfillId: "{backfill_id}") {{
            ... on PartitionBackfill {{ status runs {{ id status }} }}
          }}
        }}"""
        return self.graphql(query)["partitionBackfillOrError"]

    def backfill(self, asset: str, partition_keys: Sequence[str]) -> Any:
        """Launch a backfill as the web page does, and wait for its end.

        Returns:
            Its `status`, and its `runs`, each with an `id` and a `status`.
        """
        backfill_id = self.submit_backfill(asset, partition_keys)

        def state() -> Any:
            return self.backfill_state(backfill_id)

        self.eventually(lambda: str(state()["status"]).startswith(("COMPLETED", "FAILED")))
        return state()

    def materializations(self, asset: str) -> list[str]:
        """The partition of each materialization of an asset."""
        found = self.graphql(
            f"""{{
              assetOrError(assetKey: {{path: ["{asset}"]}}) {{
                ... on Asset {{ assetMaterializations(limit: 1000) {{ partition }} }}
              }}
            }}"""
        )["assetOrError"]["assetMaterializations"]
        return [event["partition"] for event in found]

    def partition_counts(self, asset: str) -> dict[str, int]:
        """How many partitions of an asset are materialized, and how many failed."""
        [stats] = self.graphql(
            f"""{{
              assetNodes(assetKeys: [{{path: ["{asset}"]}}]) {{
                partitionStats {{ numMaterialized numFailed }}
              }}
            }}"""
        )["assetNodes"]
        counts: dict[str, int] = stats["partitionStats"]
        return counts

    def stop(self) -> None:
        """Stop it with Ctrl-C, if it is running."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(120)
        self._reader.join(60)


@contextmanager
def running_dev(
    project: Path, *options: str, command: Sequence[str] = ("uv", "run", "just", "dev")
) -> Iterator[Dev]:
    """Run `just dev` of a project during the block, or another command with Dagster's web page."""
    dev = Dev(project, start(*command, *options, cwd=project))
    try:
        dev.address("Dagster")
        yield dev
    finally:
        dev.stop()
