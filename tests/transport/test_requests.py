"""What becomes of the request of a call: where it may lead, how large it may be, what it keeps."""

import json
import logging
import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import dagster as dg
import pytest
import requests
from conftest import Materialize, eventually, lines
from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR
from faults import Fault, FaultProxy, Request, Response, fault_proxy, respond
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from gcp_pipes.orchestrator.event import EventError, request_body, serialize
from gcp_pipes.orchestrator.http import (
    CloudFunctionAdapter,
    invoke_cloud_function,
)
from gcp_pipes.orchestrator.launcher import Outcome
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.oauth2.credentials import Credentials
from requests.adapters import HTTPAdapter

MEBIBYTE = 1024 * 1024
LIMIT = 32 * MEBIBYTE
SIGN_IN = "https://accounts.google.com/o/oauth2/v2/auth?client_id=iap&redirect_uri=x"


def redirect(location: str | None, status: int = 302, *, by_iap: bool = False) -> Fault:
    """The response of a server that sends the client elsewhere."""
    headers = {} if location is None else {"Location": location}
    if by_iap:
        headers["X-Goog-IAP-Generated-Response"] = "true"
    return lambda request: Response(status, b"<html>Found</html>", headers)


def forward(request: Request) -> Response:
    """No fault."""
    return request.forward()


# Redirects


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_an_error_and_no_second_request_is_made(
    status: int, materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail_always(redirect("https://elsewhere.example.com/f?a=1", status))

    run = materialize(lines=1)

    assert not run.success
    [first_line] = run.failure.splitlines()[:1]
    assert f"responded {status}: " in first_line
    assert "a redirect to https://elsewhere.example.com/f?a=1." in first_line
    assert "set FUNCTION_URL to the function's own https URL" in first_line
    assert "roles/" not in run.failure
    assert [method for method, _ in calls.seen] == ["POST"]


def test_a_redirect_to_the_same_url_ends_at_once(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail_always(redirect(calls.url))

    run = materialize(lines=1)

    assert not run.success
    assert f"a redirect to {calls.url}. Redirects are not followed" in run.failure
    assert len(calls.seen) == 1


def test_a_redirect_to_another_path_names_its_url(
    materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail_always(redirect("/other/"))

    assert f"a redirect to {calls.url}/other/." in materialize(lines=1).failure
    assert len(calls.seen) == 1


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        (None, "a redirect without a target"),
        ("http://[bad", "the target of a redirect could not be parsed"),
        ("http://\xff\xfe", "the target of a redirect could not be parsed"),
    ],
)
def test_a_redirect_to_an_invalid_url_is_an_error_too(
    location: str | None, reason: str, materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail_always(redirect(location))

    run = materialize(lines=1)

    assert reason in run.failure
    assert "FUNCTION_URL" in run.failure
    assert len(calls.seen) == 1


@pytest.mark.parametrize(
    "fault",
    [
        redirect(SIGN_IN),
        redirect("https://iap.googleapis.com/v1/oauth/clientIds/1:handleRedirect"),
        redirect("/login", by_iap=True),
    ],
)
def test_a_redirect_to_a_sign_in_page_says_so(
    fault: Fault, materialize: Materialize, calls: FaultProxy
) -> None:
    calls.fail_always(fault)

    failure = materialize(lines=1).failure

    assert "That is a Google sign-in page: Identity-Aware Proxy" in failure
    assert "set FUNCTION_URL to the function's own https URL" in failure


def test_a_redirect_of_a_request_with_a_token_is_not_followed(calls: FaultProxy) -> None:
    calls.fail_always(redirect("/elsewhere"))
    session = AuthorizedSession(Credentials("a-token"))
    session.mount("http://", CloudFunctionAdapter())

    with session:
        response = invoke_cloud_function(session, url=calls.url, data=b"{}", headers={}, timeout=5)

    assert response.outcome is Outcome.FINISHED
    assert response.error is not None
    assert "a redirect to" in response.error
    assert len(calls.seen) == 1


def test_partitions_are_not_all_redirected(
    client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    calls.fail_always(redirect(SIGN_IN))

    result = run_partitions(client, calls.url, 50, {"task": "scripted"})

    assert not result.success
    data: Any = result.failure_data_for_node("thing")
    assert "were not started" in data.user_failure_data.description
    assert "a redirect to" in data.user_failure_data.description
    assert len(calls.seen) <= 8


def test_a_request_to_cancel_is_not_redirected(
    client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    calls.fail(forward, forward, redirect("/elsewhere"))

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
    def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
        partitions = client.run_partitions(
            context=context,
            function_url=calls.url,
            event=lambda key: {"task": "scripted", "lines": 1 if key == "a" else 50, "pause": 0.1},
            max_in_flight=2,
        )
        yield next(partitions)
        partitions.close()  # type: ignore[attr-defined]  # it is a generator

    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        result = dg.materialize(
            [thing], instance=instance, tags=ends("a", "b"), raise_on_error=False
        )
        said = [entry.user_message for entry in instance.all_logs(result.run_id)]

    [warning] = [each for each in said if "Could not cancel the cloud function" in each]
    assert f"a redirect to {calls.url}/elsewhere." in warning
    assert len(calls.seen) == 3
    # The call goes on, since it was not cancelled.
    eventually(lambda: not any(each.name.startswith("pipes-") for each in threading.enumerate()))


# The size of an event


def run_partitions(
    client: PipesCloudFunctionClient, url: str, count: int, event: Any, max_in_flight: int = 4
) -> dg.ExecuteInProcessResult:
    days = dg.DailyPartitionsDefinition("2024-01-01", end_date="2025-01-01")

    @dg.asset(partitions_def=days, backfill_policy=dg.BackfillPolicy.single_run())
    def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from client.run_partitions(
            context=context, function_url=url, event=event, max_in_flight=max_in_flight
        )

    keys = days.get_partition_keys()
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        return dg.materialize(
            [thing],
            instance=instance,
            tags=ends(keys[0], keys[count - 1]),
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )


def ends(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def test_an_event_that_is_too_large_is_rejected_before_anything_is_sent(
    materialize: Materialize, calls: FaultProxy, reads: FaultProxy
) -> None:
    run = materialize(small="x", rows="x" * 40 * MEBIBYTE, medium="x" * MEBIBYTE)

    assert not run.success
    assert run.failure.startswith(
        "The event is too large: it has 41.0 MiB, and a request to Google Cloud may have 32.0 MiB. "
        "Its largest input 'rows' has 40.0 MiB."
    )
    assert "Store that in a bucket, and pass its location." in run.failure
    assert not calls.seen
    assert not reads.seen


def test_the_parameters_of_pipes_count_for_the_size_of_a_request(
    materialize: Materialize, calls: FaultProxy
) -> None:
    assert "is too large: it has 32.0 MiB" in materialize(rows="x" * (LIMIT - 500)).failure
    assert not calls.seen

    run = materialize(rows="x" * (LIMIT - 8 * 1024), lines=1)

    assert run.success, run.failure
    assert run.lines == lines(1)


def test_an_event_of_many_small_inputs_can_be_too_large_too() -> None:
    with pytest.raises(EventError, match=r"The event is too large: it has 33\.4 MiB"):
        serialize({f"{number:07}": 1 for number in range(2_500_000)}, None)


def test_extras_that_are_too_large_are_named(
    client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    noise = random.Random(7).randbytes(32 * MEBIBYTE).hex()  # cannot be compressed to less

    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> Any:
        return client.run(
            context=context,
            function_url=calls.url,
            event={"task": "scripted"},
            extras={"noise": noise},
        ).get_materialize_result()

    with pytest.raises(dg.Failure, match="largest part, the Pipes context with the `extras`, has"):
        thing(dg.build_asset_context())
    assert not calls.seen


def test_a_partition_whose_event_is_too_large_fails_and_no_other(
    client: PipesCloudFunctionClient, calls: FaultProxy
) -> None:
    def event(key: str) -> dict[str, Any]:
        return {"task": "scripted", "rows": "x" * (40 * MEBIBYTE if key == "2024-01-02" else 1)}

    result = run_partitions(client, calls.url, 3, event)

    assert not result.success
    data: Any = result.failure_data_for_node("thing")
    summary = data.user_failure_data.description
    assert summary.startswith("1 of 3 partitions failed.\n2024-01-02: The event is too large: ")
    assert "'rows'" in summary
    assert len(result.get_asset_materialization_events()) == 2
    assert len(calls.seen) == 2


def test_the_body_of_a_request_is_the_event_with_the_parameters() -> None:
    event = {"a": [1, {"b": "é"}], "c": None, DAGSTER_PIPES_CONTEXT_ENV_VAR: "theirs"}
    parameters = {DAGSTER_PIPES_CONTEXT_ENV_VAR: "ours"}

    assert json.loads(request_body(serialize(event, None), parameters)) == {**event, **parameters}
    assert json.loads(request_body(serialize({}, None), parameters)) == parameters
    assert json.loads(request_body(serialize({}, None), {})) == {}


@pytest.mark.parametrize("value", [object(), float("nan"), {"deep": {1, 2}}, b"bytes"])
def test_an_input_that_is_not_json_is_an_error_with_its_name(value: object) -> None:
    with pytest.raises(EventError, match="input 'day' is not JSON serializable"):
        serialize({"rows": 1, "day": value}, None)


# Connections to Cloud Storage


@pytest.fixture
def pool_warnings() -> Iterator[list[str]]:
    """What urllib3 warns of."""
    told: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, handler = logging.getLogger("urllib3.connectionpool"), Handler(logging.WARNING)
    logger.addHandler(handler)
    yield told
    logger.removeHandler(handler)


def read_at_once(reader: PipesCloudStorageMessageReader, count: int) -> None:
    """Read in as many threads, all of which have a connection at the same time."""
    together = threading.Barrier(count)

    def read(number: int) -> None:
        for chunk in range(3):
            together.wait(60)
            assert reader.download_messages_chunk(chunk, params) is None

    params = {"bucket": reader.bucket, "key_prefix": "nothing"}
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(read, range(count)))


def test_a_hundred_calls_at_once_warn_of_no_full_pool_with_a_plain_client(
    emulator: Mapping[str, str], pool_warnings: list[str]
) -> None:
    with closing(storage.Client()) as client:
        reader = PipesCloudStorageMessageReader(bucket=emulator["MESSAGES_BUCKET"], client=client)
        read_at_once(reader, 100)

    assert not pool_warnings


def test_a_hundred_calls_at_once_keep_their_connections(
    reader: PipesCloudStorageMessageReader, reads: FaultProxy, pool_warnings: list[str]
) -> None:
    before = reads.connections

    read_at_once(reader, 100)

    assert not pool_warnings
    # 300 reads: 280 connections with the usual pool of ten. A read that is retried needs another.
    assert reads.connections - before < 120


def test_a_hundred_calls_that_need_a_token_at_once_warn_of_no_full_pool(
    emulator: Mapping[str, str], reads: FaultProxy, pool_warnings: list[str]
) -> None:
    with fault_proxy(reads.url) as tokens:
        tokens.fail_always(respond(200, b'{"access_token": "t", "expires_in": 3600}'))
        credentials = Credentials(
            None, refresh_token="r", token_uri=tokens.url, client_id="c", client_secret="s"
        )
        options = {"api_endpoint": reads.url}
        with closing(
            storage.Client(project="local", credentials=credentials, client_options=options)
        ) as client:
            reader = PipesCloudStorageMessageReader(
                bucket=emulator["MESSAGES_BUCKET"], client=client
            )
            read_at_once(reader, 100)

    assert tokens.seen
    assert not pool_warnings


def test_the_connection_pool_of_a_client_is_not_changed_if_it_was_configured() -> None:
    session = requests.Session()
    chosen = HTTPAdapter(pool_maxsize=20, pool_block=True)
    session.mount("https://", chosen)

    with closing(storage.Client("local", AnonymousCredentials(), _http=session)) as client:
        PipesCloudStorageMessageReader(bucket="messages", client=client)

    assert session.get_adapter("https://storage.googleapis.com") is chosen
