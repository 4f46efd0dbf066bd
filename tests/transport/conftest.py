"""A served function and emulated storage, with proxies between all parts.

These tests run in the orchestrator's environment of a rendered project: see
rendered/test_transport.py.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import psutil
import pytest
from crashes import JOBS, Dagster
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from faults import FaultProxy, fault_proxy
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from local_cloud.cloud import storage_emulator
from local_cloud.functions import cloud_function
from local_cloud.project import TASKS

FUNCTIONS = Path(__file__).parent / "functions"


@contextmanager
def serve(
    source: Path, storage_url: str, *, port: int | None = None, **environment: str
) -> Iterator[str]:
    """Serve a function, in the environment of the cloud function; yield its URL."""
    environment = {
        "FUNCTION_SOURCE": str(source),
        "PYTHONPATH": str(TASKS),
        "STORAGE_EMULATOR_HOST": storage_url,
        **environment,
    }
    with cloud_function(environment, port) as settings:
        yield settings["FUNCTION_URL"]


def server_at(url: str) -> psutil.Process:
    """The process of the Functions Framework that serves a function. Its children run the tasks."""
    expected = {f"--port={urlsplit(url).port}", "functions-framework"}
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            command = {Path(each).name for each in process.cmdline()}
            if expected <= command and "uv" not in command:
                found.append(process)
    return min(found, key=psutil.Process.create_time)  # its children have the same command


@pytest.fixture(scope="session", autouse=True)
def emulator() -> Iterator[Mapping[str, str]]:
    """The emulated storage, with its settings in the environment."""
    with storage_emulator() as settings, pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        yield settings


@pytest.fixture(scope="session")
def writing_proxy(emulator: Mapping[str, str]) -> Iterator[FaultProxy]:
    """The proxy of `writes`."""
    with fault_proxy(emulator["STORAGE_EMULATOR_HOST"]) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def reading_proxy(emulator: Mapping[str, str]) -> Iterator[FaultProxy]:
    """The proxy of `reads`."""
    with fault_proxy(emulator["STORAGE_EMULATOR_HOST"]) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def calling_proxy(writing_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy of `calls`, with the function."""
    with (
        serve(TASKS / "main.py", writing_proxy.url, THREADS="40") as url,
        fault_proxy(url) as proxy,
    ):
        yield proxy


@pytest.fixture
def writes(writing_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy between the function and the storage."""
    yield writing_proxy
    writing_proxy.reset()


@pytest.fixture
def reads(reading_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy between the reader and the storage."""
    yield reading_proxy
    reading_proxy.reset()


@pytest.fixture
def calls(calling_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy between the client and the function."""
    yield calling_proxy
    calling_proxy.reset()


@pytest.fixture
def reader(reads: FaultProxy, emulator: Mapping[str, str]) -> PipesCloudStorageMessageReader:
    """Reads the messages of the function, through `reads`."""
    client = storage.Client(
        project="local",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": reads.url},
    )
    return PipesCloudStorageMessageReader(
        bucket=emulator["MESSAGES_BUCKET"], client=client, interval=0.2
    )


@pytest.fixture
def client(reader: PipesCloudStorageMessageReader) -> Iterator[PipesCloudFunctionClient]:
    """A client with short timeouts."""
    client = PipesCloudFunctionClient(reader, timeout=5, retry_timeout=5)
    yield client
    client.close()


@dataclass
class Run:
    """The result of a run in which one asset called the function."""

    success: bool
    lines: list[str]
    """What the task logged, without the function's own lines."""
    logged: list[tuple[str, str]]
    """All log lines, with their levels."""
    reports: list[str]
    """Errors of the transport that were reported during the run."""
    metadata: dict[str, Any]
    call: dict[str, str]
    """The table of the call in the metadata."""
    failure: str


Materialize = Callable[..., Run]


@pytest.fixture
def materialize(client: PipesCloudFunctionClient, calls: FaultProxy) -> Materialize:
    """Materializes an asset by a call of the task `scripted`, with inputs by name."""

    def materialize(
        asset: str = "thing",
        *,
        url: str = calls.url,
        with_client: PipesCloudFunctionClient = client,
        **event: Any,
    ) -> Run:
        @dg.asset(name=asset)
        def calling(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return with_client.run(
                context=context, function_url=url, event={"task": "scripted", **event}
            ).get_materialize_result()

        return run_asset(calling)

    return materialize


def run_asset(asset: dg.AssetsDefinition) -> Run:
    """Materialize an asset on an instance of its own."""
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        result = dg.materialize(
            [asset],
            instance=instance,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        entries = instance.all_logs(result.run_id)
    logged = [
        (logging.getLevelName(entry.level), entry.user_message)
        for entry in entries
        if entry.dagster_event is None
    ]
    reports = [
        str(entry.dagster_event.event_specific_data)
        for entry in entries
        if entry.dagster_event and "[pipes] framework" in str(entry.dagster_event.message)
    ]
    materializations = result.get_asset_materialization_events()
    metadata = {
        name: value.value
        for event in materializations
        for name, value in event.step_materialization_data.materialization.metadata.items()
    }
    failure = ""
    if not result.success:
        data = result.failure_data_for_node(asset.op.name)
        assert data is not None
        failure = str(data.user_failure_data.description if data.user_failure_data else data)
    assert result.success == bool(materializations)
    return Run(
        success=result.success,
        lines=[message for _, message in logged if f"{asset.key.to_user_string()} line" in message],
        logged=logged,
        reports=reports,
        metadata=metadata,
        call=table(str(metadata.get("cloud_function_call", ""))),
        failure=failure,
    )


def table(markdown: str) -> dict[str, str]:
    """The rows of a Markdown table of two columns."""
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", markdown, re.MULTILINE))


def write_files_of(guide: str, folder: Path) -> None:
    """Write the files that a guide shows, which have their names as titles, into a folder."""
    page = Path(__file__).parents[2] / "docs" / "guides" / guide
    titled = re.compile(r'^```\w+ title="(\S+)"\n(.+?)^```$', re.DOTALL | re.MULTILINE)
    for name, text in titled.findall(page.read_text()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def lines(count: int, asset: str = "thing") -> list[str]:
    """What the task `scripted` logs."""
    return [f"{asset} line {number}" for number in range(count)]


def environment_without_pytest() -> dict[str, str]:
    """The environment variables without those of pytest."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


RUN = """
import json, sys
import dagster as dg
from google.cloud import storage
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader

bucket, url, event, forwards = sys.argv[1:]

@dg.asset
def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    reader = PipesCloudStorageMessageReader(bucket=bucket, client=storage.Client())
    client = PipesCloudFunctionClient(reader, forward_termination=json.loads(forwards))
    return client.run(
        context=context, function_url=url, event={"task": "scripted", **json.loads(event)}
    ).get_materialize_result()

dg.materialize([thing], instance=dg.DagsterInstance.get())
"""


@pytest.fixture
def interrupt(tmp_path: Path, emulator: Mapping[str, str]) -> Callable[..., str]:
    """Interrupts a run in a process of its own, whose instance is in `tmp_path`."""

    def interrupt(
        url: str,
        after: str,
        *,
        sent: signal.Signals = signal.SIGINT,
        forward_termination: bool = True,
        **event: Any,
    ) -> str:
        """Send the signal once a line is printed; return what is printed after that."""
        (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        bucket = emulator["MESSAGES_BUCKET"]
        arguments = [bucket, url, json.dumps(event), json.dumps(forward_termination)]
        with subprocess.Popen(
            [sys.executable, "-c", RUN, *arguments],
            env={**environment_without_pytest(), "DAGSTER_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if after in line:
                    break
            process.send_signal(sent)
            rest = process.stdout.read()
            process.wait(30)
        return rest

    return interrupt


DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2027-01-01")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def days(count: int) -> list[str]:
    """The keys of the first partitions."""
    return list(DAYS.get_partition_keys()[:count])


class Partitions:
    """An asset with a call for each partition, and the event log of its runs."""

    key = dg.AssetKey("thing")

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.runs: list[dg.ExecuteInProcessResult] = []

    def run(self, asset: dg.AssetsDefinition, *keys: str, **tags: str) -> bool:
        """Materialize the partitions from the first to the last of `keys`, in one run."""
        ends = {
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        }
        result = dg.materialize(
            [asset],
            instance=self.instance,
            tags={**ends, **tags},
            raise_on_error=False,
            run_config=QUIET,
        )
        self.runs.append(result)
        return result.success

    def materialized(self) -> Counter[str]:
        """The number of materialization events of each partition."""
        records = self.instance.fetch_materializations(self.key, limit=1_000).records
        return Counter(str(record.partition_key) for record in records)

    def records(self, partition_key: str) -> Sequence[dg.EventLogRecord]:
        """The materializations of a partition, the oldest first."""
        return self.instance.fetch_materializations(
            dg.AssetRecordsFilter(self.key, asset_partitions=[partition_key]),
            limit=10,
            ascending=True,
        ).records

    def materialization(self, partition_key: str) -> dg.AssetMaterialization:
        """The one materialization of a partition."""
        [record] = self.records(partition_key)
        assert record.asset_materialization is not None
        return record.asset_materialization

    def statuses(self, *keys: str) -> set[AssetPartitionStatus | None]:
        """The statuses that Dagster shows for some partitions."""
        found = self.instance.get_status_by_partition(self.key, keys, DAYS)
        assert found is not None
        return {found[key] for key in keys}

    def logged(self) -> list[str]:
        """The log lines of the last run."""
        entries = self.instance.all_logs(self.runs[-1].run_id)
        return [entry.user_message for entry in entries if entry.dagster_event is None]

    def failure(self) -> Any:
        """Why the last run failed."""
        data = self.runs[-1].failure_data_for_node("thing")
        assert data is not None
        return data.user_failure_data or data.error


@pytest.fixture
def partitions() -> Iterator[Partitions]:
    """An asset on an instance of its own."""
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        yield Partitions(instance)


Define = Callable[..., dg.AssetsDefinition]


@pytest.fixture
def define(client: PipesCloudFunctionClient, calls: FaultProxy) -> Define:
    """Defines an asset whose partitions are made by the task `scripted`, with inputs by name."""

    def define(
        *,
        url: str = calls.url,
        max_in_flight: int = 8,
        check_specs: list[dg.AssetCheckSpec] | None = None,
        retry_policy: dg.RetryPolicy | None = None,
        run: Mapping[str, Any] | None = None,
        **event: Any,
    ) -> dg.AssetsDefinition:
        @dg.asset(
            name="thing",
            partitions_def=DAYS,
            backfill_policy=dg.BackfillPolicy.single_run(),
            check_specs=check_specs,
            retry_policy=retry_policy,
        )
        def calling(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from client.run_partitions(
                context=context,
                function_url=url,
                max_in_flight=max_in_flight,
                **{"event": {"task": "scripted", **event}, **(run or {})},
            )

        return calling

    return define


def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until the condition holds, or the time is over: the caller tests which."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture
def dagster(tmp_path: Path, emulator: Mapping[str, str], calls: FaultProxy) -> Iterator[Dagster]:
    """An instance whose steps and runs can be killed."""
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
            with suppress(psutil.Error):
                step = psutil.Process(int(pid))
                if step.environ().get("CRASHING_FOLDER") == str(tmp_path):  # not another test's
                    step.kill()
