"""Calls of a function that knows nothing of Pipes."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import Run, run_asset, serve
from faults import Fault, FaultProxy, cut, cut_after, fault_proxy, respond, respond_after
from gcp_pipes.orchestrator import CloudFunctionAnswer, PipesCloudFunctionClient

Call = Callable[..., Run]


@pytest.fixture(scope="module")
def plain_proxy(emulator: Mapping[str, str]) -> Iterator[FaultProxy]:
    """The proxy of `plain`."""
    source = Path(__file__).parent / "functions" / "plain.py"
    with serve(source, emulator["STORAGE_EMULATOR_HOST"]) as url, fault_proxy(url) as proxy:
        yield proxy


@pytest.fixture
def plain(plain_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy between the client and the function."""
    yield plain_proxy
    plain_proxy.reset()


@pytest.fixture
def call(client: PipesCloudFunctionClient, plain: FaultProxy) -> Call:
    """Materializes an asset by a call with an event."""

    def call(url: str = plain.url, timeout: float = 5, **event: Any) -> Run:
        @dg.asset(name="thing")
        def calling(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return client.call(
                context=context, function_url=url, event=event, timeout=timeout
            ).get_materialize_result()

        return run_asset(calling)

    return call


def test_the_answer_is_metadata_of_its_types(call: Call) -> None:
    page = "https://example.com/report"
    answer = {
        "rows": 3,
        "share": 0.5,
        "is_complete": True,
        "note": "fine",
        "page": page,
        "nothing": None,
        "regions": ["nl", "de"],
    }

    run = call(answer=answer)

    assert run.success
    assert {name: run.metadata[name] for name in answer} == answer
    assert run.call["status"] == "200"
    assert run.call["attempts"] == "1"
    assert run.metadata["cloud_function_seconds"] > 0


def test_metadata_has_the_type_of_its_value(
    client: PipesCloudFunctionClient, plain: FaultProxy
) -> None:
    answers: list[CloudFunctionAnswer] = []

    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> None:
        answers.append(
            client.call(
                context=context,
                function_url=plain.url,
                event={
                    "answer": {"page": "http://a.example/b", "rows": 3, "tags": {}, "ok": False}
                },
            )
        )

    run_asset(thing)

    [answer] = answers
    assert answer.value == {"page": "http://a.example/b", "rows": 3, "tags": {}, "ok": False}
    assert answer.metadata["page"] == dg.MetadataValue.url("http://a.example/b")
    assert answer.metadata["rows"] == dg.MetadataValue.int(3)
    assert answer.metadata["tags"] == dg.MetadataValue.json({})
    assert answer.metadata["ok"] == dg.MetadataValue.bool(False)


def test_the_function_receives_the_event_and_nothing_else(call: Call) -> None:
    assert call(first=1, second=[2]).metadata.items() >= {"first": 1, "second": [2]}.items()


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        ({"answer": [1, {"a": 2}]}, [1, {"a": 2}]),
        ({"answer": 3}, 3),
        ({"text": "Done."}, "Done."),
        ({"text": "[" * 100_000}, "[" * 10_000 + " … (the first 10000 of 100000 characters)"),
        ({"text": '{"rows": NaN'}, '{"rows": NaN'),
        ({"text": "[" * 600 + "]" * 600}, "JSON that is too deep to be shown"),
        ({"text": "\ufeff3"}, 3),
        ({"text": '"half a pair: \\ud800"'}, "half a pair: ?"),
        ({"text": "[1e400, NaN]"}, ["1e400", "NaN"]),
    ],
)
def test_an_answer_that_is_no_json_object_is_metadata_too(
    event: dict[str, Any], shown: Any, call: Call
) -> None:
    run = call(**event)

    assert run.success
    assert run.metadata["response"] == shown


def test_an_empty_answer_is_success(call: Call) -> None:
    run = call(text="", status=204)

    assert run.success
    assert set(run.metadata) == {"cloud_function_call", "cloud_function_seconds"}


def test_a_large_answer_is_cut(call: Call) -> None:
    answer = {f"value {number:03}": number for number in range(120)}

    run = call(answer={"long": list(range(10_000)), **answer})

    assert str(run.metadata["long"]).endswith("(the first 10000 of 58890 characters)")
    assert run.metadata["response/further values"] == 21
    assert run.metadata["value 098"] == 98
    assert "value 099" not in run.metadata


def test_names_with_a_meaning_for_dagster_or_the_client_are_changed(call: Call) -> None:
    answer = {
        "__source_asset_observation__": True,
        "dagster/row_count": "three",
        "cloud_function_seconds": 3,
        "x" * 300: 1,
    }

    run = call(answer=answer)

    assert run.success
    assert run.metadata["response/__source_asset_observation__"] is True
    assert run.metadata["response/dagster/row_count"] == "three"
    assert run.metadata["response/cloud_function_seconds"] == 3
    assert run.metadata["x" * 200] == 1


def test_an_error_that_is_too_deep_is_text(call: Call) -> None:
    run = call(text="[" * 600 + "]" * 600, status=400)

    assert "The cloud function responded 400: [[[[" in run.failure


def test_a_429_of_the_function_itself_is_not_retried(call: Call, plain: FaultProxy) -> None:
    run = call(answer={"error": "too many orders"}, status=429)

    assert "The cloud function responded 429: too many orders" in run.failure
    assert len(plain.seen) == 1


def test_secrets_are_not_in_the_event_log(call: Call) -> None:
    answer = {
        "access_token": "abc-1",
        "rows": 3,
        "accounts": [{"user": "me", "Password": "abc-2"}],
        "apiKey": "abc-3",
        "credentials": {"value": ["abc-4"]},
        "tokens": 7,
    }

    run = call(answer=answer)
    failed = call(answer=answer, status=400)

    assert "abc-" not in str(run)
    assert run.metadata["rows"] == 3
    assert run.metadata["tokens"] == 7
    assert run.metadata["access_token"] == "(hidden: its name is that of a secret)"
    assert "abc-" not in str(failed)
    assert '"user": "me"' in failed.failure


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 418, 500, 501, 502, 503])
def test_another_status_fails_the_step_without_a_retry(
    status: int, call: Call, plain: FaultProxy
) -> None:
    run = call(answer={"error": "the warehouse is closed"}, status=status)

    assert not run.success
    assert f"The cloud function responded {status}: the warehouse is closed" in run.failure
    assert "\nattempts: 1\n" in run.failure
    assert len(plain.seen) == 1


@pytest.mark.parametrize("fault", [respond(503), respond_after(500), respond(502)])
def test_what_may_have_started_is_not_retried(fault: Fault, call: Call, plain: FaultProxy) -> None:
    plain.fail(fault)

    assert not call().success
    assert len(plain.seen) == 1


@pytest.mark.parametrize("fault", [cut, cut_after, respond_after(504)])
def test_a_lost_response_fails_the_step_without_a_retry(
    fault: Fault, call: Call, plain: FaultProxy
) -> None:
    plain.fail(fault)

    run = call()

    assert not run.success
    assert "The response of the cloud function was lost (" in run.failure
    assert "so it is not called again: see its logs." in run.failure
    assert len(plain.seen) == 1


def test_a_call_without_a_free_instance_is_retried(call: Call, plain: FaultProxy) -> None:
    plain.fail(respond(429), respond(429))

    run = call(answer={"rows": 3})

    assert run.success
    assert run.call["attempts"] == "3"
    retries = [text.split(":")[0] for level, text in run.logged if level == "WARNING"]
    assert retries == [f"Attempt {number} did not reach the cloud function" for number in (1, 2)]


def test_a_call_that_cannot_connect_is_retried_until_its_limit(call: Call) -> None:
    run = call(url="http://127.0.0.1:1")

    assert not run.success
    assert "The cloud function could not be reached" in run.failure
    assert any("Retrying in" in text for _, text in run.logged)


def test_a_call_that_takes_too_long_fails(call: Call, plain: FaultProxy) -> None:
    run = call(seconds=2, timeout=0.5)

    assert not run.success
    assert "Read timed out" in run.failure
    assert len(plain.seen) == 1


def test_an_event_that_is_no_json_is_not_sent(call: Call, plain: FaultProxy) -> None:
    run = call(answer={1, 2})

    assert "The event's input 'answer' is not JSON serializable" in run.failure
    assert not plain.seen
