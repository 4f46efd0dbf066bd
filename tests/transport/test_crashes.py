"""What becomes of calls whose step or run crashes: followed if they run, never made twice."""

import time
from collections import Counter
from collections.abc import Callable, Mapping

import dagster as dg
from conftest import days, eventually, serve, server_at, table
from crashes import Dagster
from faults import FaultProxy, Request, Response
from local_cloud.processes import free_port
from local_cloud.project import TASKS


def forward_after(seconds: float) -> Callable[[Request], Response]:
    """Send the request to the server late, also if the client is gone."""

    def fault(request: Request) -> Response:
        time.sleep(seconds)
        return request.forward()

    return fault


def lines(what: str, count: int) -> dict[str, int]:
    """The lines of one execution of the task."""
    return {f"{what} line {number}": 1 for number in range(count)}


def test_a_step_that_is_killed_follows_its_call(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=8, pause=1.0)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(run_id) == lines("one", 8)
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_is_followed_keeps_its_trace(dagster: Dagster) -> None:
    collector = f"http://127.0.0.1:{free_port()}"  # it is down
    dagster.environment = {**dagster.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    run_id = dagster.launch("one", lines=4, pause=1.0)
    eventually(lambda: dagster.lines(run_id)["one line 0"] > 0)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    logged = [entry.user_message for entry in dagster.instance.all_logs(run_id)]
    [line] = [line for line in logged if line.startswith("Cloud function trace: ")]
    [record] = dagster.instance.fetch_materializations(dg.AssetKey("one"), limit=10).records
    assert record.asset_materialization is not None
    call = str(record.asset_materialization.metadata["cloud_function_call"].value)
    assert table(call)["trace"] == line.removeprefix("Cloud function trace: ")


def test_a_step_that_is_killed_again_and_again_follows_its_call(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=28, pause=1.0)
    for count in range(12):
        eventually(lambda: dagster.handles(run_id) == count + 1)  # noqa: B023  # called here
        dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(run_id) == lines("one", 28)


def test_a_call_that_ends_before_its_step_is_executed_again_is_not_made_again(
    dagster: Dagster,
) -> None:
    run_id = dagster.launch("one", lines=2, pause=1.0)
    eventually(lambda: dagster.states() == ["started"])
    dagster.kill_run(run_id)
    eventually(lambda: dagster.states() == ["ended"])
    dagster.fail(run_id)

    again = dagster.reexecute(run_id)

    assert dagster.status(again) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(again) == lines("one", 2)  # a log of its own
    assert dagster.materializations("one") == {None: 1}


def test_a_run_that_is_killed_is_followed_by_its_re_execution(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=12, pause=1.0)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)
    dagster.kill_run(run_id)
    dagster.fail(run_id)

    again = dagster.reexecute(run_id)

    assert dagster.status(again) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(again) == lines("one", 12)
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_starts_after_its_step_was_killed_is_not_made_twice(
    dagster: Dagster, calls: FaultProxy
) -> None:
    calls.fail(forward_after(6.0))
    run_id = dagster.launch("one", lines=2, pause=0.5)
    eventually(lambda: len(calls.seen) == 1)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    time.sleep(8)
    assert dagster.states() == ["ended"]
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_failed_is_made_again(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=1, pause=0.1, failures=1)

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["failed", "ended"]


def test_a_call_that_fails_after_its_step_was_killed_is_made_again(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=3, pause=1.0, failures=1)
    eventually(lambda: dagster.states() == ["started"])

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["failed", "ended"]
    assert dagster.materializations("one") == {None: 1}


def test_a_call_whose_function_was_killed_too_is_made_again(
    dagster: Dagster, emulator: Mapping[str, str]
) -> None:
    storage_url = emulator["STORAGE_EMULATOR_HOST"]
    with serve(TASKS / "main.py", storage_url, HEARTBEAT_INTERVAL="2") as url:
        dagster.url = url
        run_id = dagster.launch("one", lines=5, pause=1.0)
        eventually(lambda: dagster.states() == ["started"])

        for worker in server_at(url).children():
            worker.kill()
        dagster.kill_step()

        assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["started", "ended"]
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_is_known_to_be_dead_is_not_followed_again(
    dagster: Dagster, emulator: Mapping[str, str]
) -> None:
    storage_url = emulator["STORAGE_EMULATOR_HOST"]
    with serve(TASKS / "main.py", storage_url, HEARTBEAT_INTERVAL="2") as url:
        dagster.url = url
        run_id = dagster.launch("one", lines=6, pause=1.0)
        eventually(lambda: dagster.states() == ["started"])
        for worker in server_at(url).children():
            worker.kill()
        dagster.kill_step()
        eventually(lambda: dagster.states() == ["started", "started"])

        dagster.kill_step()

        assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["started", "ended"]
    texts = [entry.user_message for entry in dagster.instance.all_logs(run_id)]
    assert sum("has failed, so it is made again" in text for text in texts) == 1


def test_identical_calls_are_distinguished(dagster: Dagster) -> None:
    run_id = dagster.launch("one", count=3, lines=1, pause=2.0)
    eventually(lambda: dagster.states() == ["ended", "started"])

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"] * 3


def test_a_call_of_a_step_that_failed_is_made_again(dagster: Dagster) -> None:
    run_id = dagster.launch("one", asset_failures=1, lines=1, pause=0.1)

    assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended", "ended"]


def test_a_call_that_was_cancelled_with_its_run_is_made_again(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=6, pause=1.0)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)
    dagster.instance.run_launcher.terminate(run_id)
    assert dagster.wait(run_id) == "CANCELED"

    again = dagster.reexecute(run_id)

    assert dagster.status(again) == "SUCCESS"
    assert dagster.states() == ["failed", "ended"]


def test_a_fan_out_that_is_killed_makes_each_call_once(dagster: Dagster) -> None:
    keys = days(40)
    run_id = dagster.launch("many", keys[0], keys[-1], lines=3, pause=0.5, max_in_flight=10)
    eventually(lambda: dagster.states().count("ended") >= 12)

    dagster.kill_step()

    assert dagster.wait(run_id) == "SUCCESS"
    assert Counter(each.what for each in dagster.executions()) == dict.fromkeys(keys, 1)
    assert dagster.materializations("many") == dict.fromkeys(keys, 1)
    expected = {line: 1 for key in keys for line in lines(key, 3)}
    assert dagster.lines(run_id) == expected


def test_a_run_that_is_resumed_follows_its_call(dagster: Dagster) -> None:
    with dagster.monitoring():
        run_id = dagster.launch("one", lines=25, pause=1.0)
        eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)

        dagster.kill_run(run_id)

        assert dagster.wait(run_id) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(run_id) == lines("one", 25)
    assert dagster.materializations("one") == {None: 1}


def test_a_call_that_goes_on_after_its_run_was_terminated_is_followed(dagster: Dagster) -> None:
    run_id = dagster.launch("one", lines=20, pause=1.0, forward_termination=False)
    eventually(lambda: dagster.lines(run_id)["one line 1"] > 0)
    dagster.instance.run_launcher.terminate(run_id)
    assert dagster.wait(run_id) == "CANCELED"

    again = dagster.reexecute(run_id)

    assert dagster.status(again) == "SUCCESS"
    assert dagster.states() == ["ended"]
    assert dagster.lines(again) == lines("one", 20)
