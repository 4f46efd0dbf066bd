"""The launcher of processes of the guide: the same rules as for functions."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import Run, days, eventually, run_asset, write_files_of
from gcp_pipes.orchestrator import PipesCloudStorageMessageReader, PipesExternalClient
from local_cloud.project import TASKS

PYTHON = TASKS / ".venv" / "bin" / "python"  # where the package for tasks is installed

Work = Callable[..., dg.AssetsDefinition]


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module of the guide."""
    folder = tmp_path_factory.mktemp("processes")
    write_files_of("other-environments.md", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import process_launcher  # type: ignore[import-not-found]

        yield process_launcher


@pytest.fixture
def client(reader: PipesCloudStorageMessageReader) -> PipesExternalClient:
    """The client of the guide."""
    return PipesExternalClient(reader, timeout=20)


@pytest.fixture
def launcher(guide: Any) -> Any:
    """Starts the work of the guide."""
    return guide.ProcessLauncher([str(PYTHON), str(Path(guide.__file__).with_name("work.py"))])


@pytest.fixture
def work(client: PipesExternalClient, launcher: Any) -> Callable[..., Run]:
    """Materializes an asset by the work of the guide."""

    def work(launcher: Any = launcher, timeout: float = 20, **event: Any) -> Run:
        @dg.asset(name="thing")
        def working(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return client.run(
                context=context, launcher=launcher, event=event, timeout=timeout
            ).get_materialize_result()

        return run_asset(working)

    return work


def test_the_launcher_has_at_most_60_lines(guide: Any) -> None:
    assert len(Path(guide.__file__).read_text().splitlines()) <= 60


def test_what_a_process_reports_is_in_the_event_log(work: Callable[..., Run]) -> None:
    run = work(rows=3)

    assert run.success
    assert [text for _, text in run.logged if "Row" in text] == ["Row 0", "Row 1", "Row 2"]
    assert run.metadata["rows"] == 3
    assert run.metadata["process_seconds"] > 0
    assert "| messages | 6 in " in str(run.metadata["process_call"])


def test_an_exception_in_a_process_fails_the_step_with_its_stack(work: Callable[..., Run]) -> None:
    run = work(rows="3")

    assert not run.success
    assert "The process raised an exception: TypeError: 'str' object" in run.failure
    assert "work.py" in run.failure


def test_a_process_that_ends_with_an_error_after_its_last_message_fails_the_step(
    work: Callable[..., Run],
) -> None:
    run = work(rows=1, status=3)

    assert not run.success
    assert "The process failed: It ended with the status 3. See its output." in run.failure


def test_a_command_that_does_not_exist_fails_the_step(work: Callable[..., Run], guide: Any) -> None:
    run = work(launcher=guide.ProcessLauncher(["no-such-command"]))

    assert "The process failed: It could not be started: " in run.failure


def test_a_process_that_sends_no_message_fails_the_step(
    work: Callable[..., Run], guide: Any
) -> None:
    run = work(launcher=guide.ProcessLauncher(["true"]))

    assert "The process has ended, but sent no message." in run.failure


def test_a_process_that_takes_too_long_is_killed(work: Callable[..., Run]) -> None:
    run = work(rows=60, pause=1, timeout=4)

    assert "The process failed: It was killed after 4 s. See its output." in run.failure


def test_partitions_run_in_a_process_each(client: PipesExternalClient, launcher: Any) -> None:
    keys = days(4)

    @dg.asset(
        partitions_def=dg.StaticPartitionsDefinition(keys),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def parts(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context, launcher=launcher, event={"rows": 1}, max_in_flight=2
        )

    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        result = dg.materialize(
            [parts],
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": keys[0],
                "dagster/asset_partition_range_end": keys[-1],
            },
        )
        assert result.success
        assert instance.get_materialized_partitions(parts.key) == set(keys)


def test_a_terminated_step_terminates_its_process(
    client: PipesExternalClient, launcher: Any
) -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        def interrupt() -> None:
            eventually(lambda: bool(launcher._processes))
            os.kill(os.getpid(), 2)

        threading.Thread(target=interrupt).start()
        return client.run(
            context=context, launcher=launcher, event={"rows": 60, "pause": 1}
        ).get_materialize_result()

    with pytest.raises(BaseException) as raised:  # noqa: PT011  # Dagster's own is private
        dg.materialize([thing])

    assert "Interrupt" in type(raised.value).__name__
    [process] = launcher._processes.values()
    assert process.wait(10) == -15
    assert sys.exception() is None
