"""Whatever a task does fails its own call at most, and what it says is not lost."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import Define, Materialize, Partitions, Run, days, eventually, serve
from faults import FaultProxy, Request, change_body, is_upload, respond, respond_after
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from local_cloud.project import TASKS

EXITS = (
    ("exit 0", "SystemExit: 0"),
    ("exit 1", "SystemExit: no more people"),
    ("exit 3", "SystemExit: 3"),
    ("exit 4", "SystemExit: 4"),
    ("argparse", "SystemExit: 2"),
    ("interrupt", "KeyboardInterrupt"),
    ("generator", "GeneratorExit"),
    ("iteration", "StopIteration"),
    ("unprintable", "UnprintableError: "),
    ("empty", "EmptyError"),
    ("recursion", "RecursionError: "),
    ("syntax", "SyntaxError: "),
)


@pytest.fixture
def unruly(materialize: Materialize) -> Materialize:
    """Materializes an asset by a call of the task `unruly`, which does what it is given to do."""

    def unruly(*do: str, **event: Any) -> Run:
        return materialize(task="unruly", do=do, **event)

    return unruly


def chunks(reader: PipesCloudStorageMessageReader, run: Run) -> list[int]:
    """The numbers of the chunks that a failed call has stored."""
    match = re.search(r"prefix: gs://([^/]+)/(\w+)/", run.failure)
    assert match is not None
    return reader.list_messages_chunks({"bucket": match[1], "key_prefix": match[2]})


# Exits


@pytest.mark.parametrize(("way", "error"), EXITS)
def test_a_task_that_exits_fails_its_own_call_with_its_traceback(
    way: str, error: str, unruly: Materialize, calls: FaultProxy
) -> None:
    run = unruly(exit=way)

    assert not run.success
    assert run.failure.startswith("The cloud function raised an exception: ")
    assert error in run.failure.splitlines()[0]
    assert "unruly.py" in run.failure
    assert unruly().success  # by the same process
    assert len(calls.seen) == 2


@pytest.mark.parametrize("way", ["exit 3", "interrupt"])
def test_a_partition_whose_task_exits_fails_and_the_others_succeed(
    way: str, partitions: Partitions, define: Define
) -> None:
    keys = days(24)

    assert not partitions.run(
        define(task="unruly", exit=way, exiting_partition=keys[11], do=["nap"], max_in_flight=24),
        *keys,
    )

    assert partitions.materialized() == dict.fromkeys({*keys} - {keys[11]}, 1)


# Time


def test_a_task_in_a_blocking_call_fails_at_its_deadline_with_its_stack(
    unruly: Materialize, reader: PipesCloudStorageMessageReader, tmp_path: Path
) -> None:
    file = tmp_path / "late"
    client = PipesCloudFunctionClient(reader, timeout=3)

    run = unruly("sleep", seconds=15, file=str(file), with_client=client)

    assert not file.exists()  # the task still sleeps
    assert not run.success
    assert "TaskTimeoutError: The task timed out after " in run.failure
    assert "time.sleep(seconds)" in run.failure
    assert run.failure.index("main.py") < run.failure.index("in do_sleep")


def test_a_late_task_can_send_no_further_message(
    unruly: Materialize, reader: PipesCloudStorageMessageReader, tmp_path: Path
) -> None:
    file = tmp_path / "late"
    client = PipesCloudFunctionClient(reader, timeout=3)

    run = unruly("sleep", seconds=10, file=str(file), with_client=client)
    stored = chunks(reader, run)
    eventually(file.exists)

    assert file.read_text().startswith("Cannot send message after pipes context is closed")
    assert chunks(reader, run) == stored
    assert "too late" not in str(run.logged)


def test_the_timeout_of_a_call_is_the_deadline_of_its_task(
    unruly: Materialize, reader: PipesCloudStorageMessageReader
) -> None:
    run = unruly("wait", with_client=PipesCloudFunctionClient(reader, timeout=3))

    assert 2.5 < deadline(run) <= 3
    assert "in do_wait" in run.failure


def test_the_start_of_the_function_counts_before_its_own_timeout(
    unruly: Materialize,
    reader: PipesCloudStorageMessageReader,
    emulator: Mapping[str, str],
    tmp_path: Path,
) -> None:
    source = tmp_path / "slow.py"
    source.write_text("import time\n\ntime.sleep(2)\n\nfrom main import main\n")
    client = PipesCloudFunctionClient(reader, timeout=60)
    with serve(source, emulator["STORAGE_EMULATOR_HOST"], FUNCTION_TIMEOUT="14") as url:
        first = deadline(unruly("wait", url=url, with_client=client))
        time.sleep(4)  # until no request can have waited for the start
        second = deadline(unruly("wait", url=url, with_client=client))

    assert first < 5
    assert 6 < second <= 7


def deadline(run: Run) -> float:
    """After how many seconds the task was stopped, by its error."""
    match = re.search("timed out after ([0-9.]+) s and", run.failure)
    assert match is not None, run.failure
    return float(match[1])


# Forked and spawned processes


def test_a_forked_child_cannot_send_messages_and_does_not_hang(unruly: Materialize) -> None:
    run = unruly("fork")

    assert run.success, run.failure
    for said in run.metadata["fork"]:
        assert said.startswith("refused: Pipes messages cannot be sent from a forked process")


def test_spawned_processes_keep_working(
    unruly: Materialize, reader: PipesCloudStorageMessageReader
) -> None:
    run = unruly("spawn", with_client=PipesCloudFunctionClient(reader, timeout=60))

    assert run.success, run.failure
    assert ("INFO", "squares [1, 2, 3]") in run.logged


# Logs


def test_a_log_record_that_cannot_be_formatted_is_reported_and_the_task_goes_on(
    unruly: Materialize,
) -> None:
    run = unruly("faulty_records")

    assert run.success, run.failure
    faulty = [text for _, text in run.logged if "A log record could not be formatted: " in text]
    assert len(faulty) == 4
    assert "'%d rows' with the arguments ('many',): TypeError: %d format" in faulty[0]
    assert "ValueError: not to be shown" in faulty[3]


def test_any_level_is_mapped_to_the_nearest_of_dagster(unruly: Materialize) -> None:
    run = unruly("levels")

    assert run.success, run.failure
    assert {text: level for level, text in run.logged if "level " in text} == {
        "level 1": "DEBUG",
        "level 5": "DEBUG",
        "level 14": "DEBUG",
        "level 25": "INFO",
        "level 26": "WARNING",
        "level 35": "WARNING",
        "level 49": "CRITICAL",
        "level 70": "CRITICAL",
        "library level 36": "ERROR",
    }
    [(level, text)] = [line for line in run.logged if line[1].startswith("no such column\n")]
    assert level == "ERROR"
    assert text.endswith("KeyError: 'rows'")


def test_a_level_from_another_writer_is_mapped_too(unruly: Materialize, reads: FaultProxy) -> None:
    reads.fail_always(change_body(lambda body: body.replace(b'"INFO"', b'"Level 36"')))

    run = unruly()

    assert run.success, run.failure
    assert {level for level, text in run.logged if text.startswith("Cloud function")} == {"ERROR"}


def test_the_output_and_exceptions_of_threads_reach_the_run(
    unruly: Materialize, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unruly("threads")

    assert run.success, run.failure
    printed = capsys.readouterr().out
    for kind in ("plain thread", "context thread"):
        assert ("INFO", f"{kind} logs") in run.logged
        assert any(f"UserWarning: {kind} warns" in text for _, text in run.logged)
        [failure] = [text for _, text in run.logged if f"ValueError: {kind} fails" in text]
        assert failure.startswith("An exception ended the thread ")
        assert "in work" in failure
        assert f"{kind} prints\n" in printed


def test_with_several_calls_in_flight_context_variables_assign_a_thread_to_its_call(
    partitions: Partitions, define: Define, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = days(8)

    assert partitions.run(define(task="unruly", do=["threads"], pause=0.3), *keys)

    said = partitions.logged() + capsys.readouterr().out.splitlines()
    for key in keys:
        of_key = [line for line in said if f"{key} " in line]
        assert {line.split(" ")[0] for line in of_key} == {f"[{key}]"}
        for way in ("logs", "warns", "prints"):
            assert len([line for line in of_key if f"context thread {way}" in line]) == 1
    # Those of the call that was in flight at last, alone, may be known.
    assert len([line for line in said if "plain thread logs" in line]) < len(keys)


@pytest.mark.parametrize("limit", [0, 10])
def test_log_lines_beyond_the_limit_reach_the_compute_logs_in_order(
    limit: int,
    unruly: Materialize,
    reader: PipesCloudStorageMessageReader,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = PipesCloudFunctionClient(reader, timeout=60, max_log_lines=limit)

    run = unruly("log_lines", lines=500, with_client=client)

    assert run.success, run.failure
    written = [text for _, text in run.logged if re.fullmatch(r"line \d+", text)]
    beyond = re.findall(r"^INFO - (line \d+)$", capsys.readouterr().err, re.MULTILINE)
    assert written + beyond == [f"line {number}" for number in range(500)]
    assert len(written) == max(limit - 2, 0)  # the function logs two lines itself
    assert [level for level, text in run.logged if "`max_log_lines`" in text] == ["WARNING"]


# Output


def test_everything_that_a_task_prints_reaches_the_compute_logs(
    unruly: Materialize, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unruly("print", natively=True)

    assert run.success, run.failure
    output, errors = capsys.readouterr()
    for line in ("from a descriptor", "from C", "from a child", "from bytes ž", "without an end"):
        assert output.splitlines().count(line) == 1
    assert re.findall(r"line \d", output) == ["line 0", "line 1", "line 2"]
    assert sorted(errors.splitlines()) == ["error", "from an error descriptor"]


def test_a_forked_child_s_output_reaches_the_compute_logs(
    unruly: Materialize, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unruly("fork").success

    assert capsys.readouterr().out.splitlines() == ["a child prints"] * 2


def test_what_calls_print_at_once_is_not_mixed(
    partitions: Partitions, define: Define, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = days(8)

    assert partitions.run(define(task="unruly", do=["print"], lines=20, pause=0.01), *keys)

    output, errors = capsys.readouterr()
    assert sorted(output.splitlines()) == sorted(
        f"[{key}] {key} {text}"
        for key in keys
        for text in [*(f"line {number}" for number in range(20)), "without an end"]
    )
    assert sorted(errors.splitlines()) == [f"[{key}] {key} error" for key in keys]


def test_any_amount_of_native_output_does_not_block_a_task(
    unruly: Materialize,
    reader: PipesCloudStorageMessageReader,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = PipesCloudFunctionClient(reader, timeout=60)

    run = unruly("large_native_output", with_client=client)

    assert run.success, run.failure
    assert capsys.readouterr().out.splitlines() == ["x" * 1023] * 3 * 1024


def test_a_setting_keeps_what_tasks_print_in_the_function_s_own_log(
    unruly: Materialize, emulator: Mapping[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(TASKS / "main.py", emulator["STORAGE_EMULATOR_HOST"], FORWARD_OUTPUT="false") as url:
        assert unruly("print", url=url, natively=True).success

    assert capfd.readouterr().out.splitlines().count("line 0") == 1  # of the function, not the run


def test_the_last_output_of_a_process_that_dies_is_in_the_function_s_own_log(
    unruly: Materialize, emulator: Mapping[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(TASKS / "main.py", emulator["STORAGE_EMULATOR_HOST"]) as url:
        assert not unruly("die", url=url).success

    assert "last words\n" in capfd.readouterr().err


def test_the_compute_logs_of_a_real_run_have_what_its_task_prints(
    client: PipesCloudFunctionClient, calls: FaultProxy, tmp_path: Path
) -> None:
    @dg.op(name="calling")
    def calling(context: dg.OpExecutionContext) -> None:
        client.run(
            context=context,
            function_url=calls.url,
            event={"task": "unruly", "do": ["print"], "report": False},
        )

    @dg.job
    def job() -> None:
        calling()

    settings = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=settings) as instance:
        run = job.execute_in_process(instance=instance, raise_on_error=False)
        assert run.success
        [captured] = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED)
        assert captured.dagster_event is not None
        file = captured.dagster_event.logs_captured_data.file_key
        logs = instance.compute_log_manager.get_log_data([run.run_id, "compute_logs", file])

    assert logs.stdout is not None
    assert b"line 0\nline 1\nline 2\n" in logs.stdout


# Storage


def test_a_large_upload_whose_session_ends_starts_a_new_one(
    materialize: Materialize, writes: FaultProxy
) -> None:
    writes.fail(respond(410), respond(410), when=is_upload_of_session)

    run = materialize(lines=1, size=10 * 1024 * 1024)

    assert run.success, run.failure
    assert len(run.lines[0]) > 10 * 1024 * 1024
    assert len([path for method, path in writes.seen if "uploadType=resumable" in path]) >= 3


@pytest.mark.parametrize("right", ["storage.objects.delete", "storage.objects.get"])
def test_a_403_for_an_object_that_exists_counts_as_a_412(
    right: str, materialize: Materialize, writes: FaultProxy
) -> None:
    refusal = f'{{"error": {{"message": "x does not have {right} access"}}}}'.encode()
    writes.fail(respond_after(503), respond(403, refusal), when=is_upload)

    run = materialize(lines=3)

    assert run.success, run.failure
    assert len(run.lines) == 3


def test_a_hundred_calls_at_once_keep_the_connections_of_the_function(
    partitions: Partitions,
    define: Define,
    emulator: Mapping[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    keys = days(100)

    with serve(TASKS / "main.py", emulator["STORAGE_EMULATOR_HOST"], THREADS="120") as url:
        asset = define(url=url, task="unruly", do=["nap"], max_in_flight=100, run={"timeout": 60})
        assert partitions.run(asset, *keys)

    assert partitions.materialized() == dict.fromkeys(keys, 1)
    printed = "".join([*capfd.readouterr(), *partitions.logged()])
    assert "Connection pool is full" not in printed


def is_upload_of_session(request: Request) -> bool:
    return "upload_id=" in request.path
