"""The calls of a step in the event log, for the case that its process crashes."""

import dagster as dg
import pytest
from dagster_pipes import PipesContextData

from gcp_pipes.orchestrator.step_calls import LoggedLines, StepCalls, call_identity

PARAMS = {"bucket": "messages", "key_prefix": "0123"}
DATA: PipesContextData = {
    "asset_keys": ["people"],
    "code_version_by_asset_key": {"people": None},
    "provenance_by_asset_key": {"people": None},
    "partition_key": None,
    "partition_key_range": None,
    "partition_time_window": None,
    "run_id": "a run",
    "job_name": "a job",
    "retry_number": 0,
    "extras": {},
}


def step_calls(context: dg.OpExecutionContext) -> StepCalls:
    return StepCalls(context, PARAMS, target="https://function", timeout=60)


def test_the_handle_of_a_call_is_in_the_event_log_before_the_call(
    instance: dg.DagsterInstance,
) -> None:
    @dg.op
    def call(context: dg.OpExecutionContext) -> None:
        step_calls(context)
        [event] = [
            entry.dagster_event
            for entry in instance.all_logs(context.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
            if entry.step_key == "call" and entry.dagster_event
        ]
        metadata = event.engine_event_data.metadata
        assert metadata["prefix"].value == "gs://messages/0123/"
        assert metadata["target"].value == "https://function"
        assert metadata["timeout (s)"].value == 60
        assert metadata["attempt"].value == 1

    @dg.job
    def calling() -> None:
        call()

    assert calling.execute_in_process(instance=instance).success


def test_each_attempt_of_each_call_has_its_own_key_prefix(instance: dg.DagsterInstance) -> None:
    @dg.op
    def call(context: dg.OpExecutionContext) -> None:
        calls = step_calls(context)
        handles = [calls.next_call(identity) for identity in ("a", "a", "b")]
        assert [
            handle.params_of(attempt)["key_prefix"] for handle in handles for attempt in (1, 2)
        ] == ["0123/a/1", "0123/a/2", "0123/a-2/1", "0123/a-2/2", "0123/b/1", "0123/b/2"]

    @dg.job
    def calling() -> None:
        call()

    assert calling.execute_in_process(instance=instance).success


@pytest.mark.parametrize("error", [ValueError, dg.Failure])
def test_a_step_that_failed_has_no_calls_to_follow(
    error: type[Exception], instance: dg.DagsterInstance
) -> None:
    @dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
    def call(context: dg.OpExecutionContext) -> None:
        assert list(step_calls(context).next_call("a").crashed) == []
        if context.retry_number == 0:
            raise error("The call has failed.")

    @dg.job
    def calling() -> None:
        call()

    assert calling.execute_in_process(instance=instance).success


def test_a_line_is_logged_again_only_if_the_log_does_not_have_it() -> None:
    logged = LoggedLines([(20, "a"), (20, "a"), (30, "a")])

    assert [logged.take(20, "a") for _ in range(3)] == [True, True, False]
    assert logged.take(30, "a")
    assert not logged.take(20, "b")


def test_a_call_is_the_same_if_it_does_the_same_work() -> None:
    def identity(url: str = "https://function", event: bytes = b"{}", **changed: object) -> str:
        data: PipesContextData = {**DATA, **changed}  # type: ignore[typeddict-item]
        return call_identity(url, event, data)

    assert identity() == identity(run_id="another run", job_name="another job", retry_number=3)
    assert identity() == identity(extras={"run_tags": {"a": "b"}, "upstream_data_versions": {}})
    others = {
        identity(url="https://other"),
        identity(event=b'{"task": "people"}'),
        identity(asset_keys=["cities"]),
        identity(code_version_by_asset_key={"people": "2"}),
        identity(partition_key="2024-01-01"),
        identity(extras={"limit": 3}),
    }
    assert len(others | {identity()}) == 7
