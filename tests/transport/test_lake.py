"""Tables in the data lake, written by the served function through a proxy that injects faults."""

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import dagster as dg
import polars as pl
import pytest
from conftest import Materialize, Partitions, Run, days, serve
from deltalake import DeltaTable
from faults import (
    Fault,
    FaultProxy,
    Request,
    Response,
    cut,
    cut_after,
    fault_proxy,
    respond,
    respond_after,
)
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from local_cloud.cloud import cloud_storage, lake_server
from local_cloud.credentials import HOME, process_variables
from local_cloud.metadata_server import ACCOUNT
from local_cloud.project import TASKS

ACCESS_DENIED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code><Message>Access denied."
    b"</Message><Details>function@my-project.iam.gserviceaccount.com does not have "
    b"storage.objects.create access to the Google Cloud Storage object.</Details></Error>"
)


@pytest.fixture(scope="session")
def lake_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Emulated storage with a data lake of its own."""
    with cloud_storage(tmp_path_factory.mktemp("buckets")) as settings:
        yield settings


@pytest.fixture(scope="session")
def lake_proxy(lake_settings: Mapping[str, str]) -> Iterator[FaultProxy]:
    """The proxy of `lake`."""
    with fault_proxy(lake_settings["GOOGLE_BASE_URL"]) as proxy:
        yield proxy


@pytest.fixture
def lake(lake_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy between the function and the data lake."""
    yield lake_proxy
    lake_proxy.reset()


@pytest.fixture(scope="session")
def serve_with_lake(
    lake_settings: Mapping[str, str], lake_proxy: FaultProxy, writing_proxy: FaultProxy
) -> Callable[..., Any]:
    """Serves the function with the data lake behind `lake`, and other variables."""

    def serve_function(**variables: str) -> Any:
        environment = {**lake_settings, "GOOGLE_BASE_URL": lake_proxy.url, **variables}
        environment.pop("STORAGE_EMULATOR_HOST")
        return serve(TASKS / "main.py", writing_proxy.url, port=None, **environment)

    return serve_function


@pytest.fixture(scope="session")
def function_url(serve_with_lake: Callable[..., Any]) -> Iterator[str]:
    """The URL of a function with the data lake behind `lake`."""
    with serve_with_lake() as url:
        yield url


@pytest.fixture
def lake_client(reader: PipesCloudStorageMessageReader) -> Iterator[PipesCloudFunctionClient]:
    """A client that waits long enough for large tables."""
    client = PipesCloudFunctionClient(reader, timeout=120)
    yield client
    client.close()


Write = Callable[..., Run]


@pytest.fixture
def write(
    materialize: Materialize,
    function_url: str,
    lake_client: PipesCloudFunctionClient,
    lake_settings: Mapping[str, str],
    request: pytest.FixtureRequest,
) -> Write:
    """Writes the table of this test by a call of the task `tables`."""

    def write(url: str = function_url, **event: Any) -> Run:
        uri = f"{lake_settings['LAKE_URI']}/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"
        return materialize(
            url=url, with_client=lake_client, task="tables", **{"dl_bucket": uri, **event}
        )

    return write


@pytest.fixture
def ids(
    lake_settings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Run], list[int]]:
    """Reads the IDs in the table of a run, without the proxy."""
    for name, value in process_variables(lake_settings).items():
        if name == "STORAGE_EMULATOR_HOST":
            continue
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)

    def ids(run: Run) -> list[int]:
        table = DeltaTable(run.metadata["table_location"])
        return sorted(pl.scan_delta(table).collect()["id"])

    return ids


Ids = Callable[[Run], list[int]]


def is_commit(request: Request) -> bool:
    """Whether the function commits a version of a table."""
    return request.method == "PUT" and "/_delta_log/" in unquote(request.path)


def is_data(request: Request) -> bool:
    """Whether the function stores rows of a table."""
    return request.method in ("PUT", "POST") and ".parquet" in unquote(request.path)


def is_list(request: Request) -> bool:
    """Whether the function lists objects."""
    return "list-type" in request.path


# The server


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 401),
        ("PUT", {"Authorization": "Bearer of-another-cloud"}, 401),
        ("PUT", {"x-goog-copy-source": "bucket/key", "Authorization": "TOKEN"}, 501),
        ("PUT", {"Transfer-Encoding": "chunked", "Authorization": "TOKEN"}, 411),
        ("POST", {"Authorization": "TOKEN"}, 501),
    ],
)
def test_a_request_without_a_token_or_of_an_unknown_kind_is_refused(
    lake_settings: Mapping[str, str], method: str, headers: dict[str, str], status: int
) -> None:
    address = lake_settings["GCE_METADATA_HOST"]
    bucket = lake_settings["LAKE_URI"].removeprefix("gs://")
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        path = "/computeMetadata/v1/instance/service-accounts/default/token"
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        token = json.load(connection.getresponse())["access_token"]
        own = {name: value.replace("TOKEN", f"Bearer {token}") for name, value in headers.items()}
        body = b"" if "Transfer-Encoding" in headers else b"x" * 100

        connection.request(method, f"/{bucket}/refused", body, own)
        response = connection.getresponse()

        assert response.status == status
        assert b"<Error><Code>" in response.read()


# Without faults


def test_a_table_is_overwritten_and_rows_are_appended_and_merged(write: Write, ids: Ids) -> None:
    write(ids=[7, 8])
    first = write(ids=[1, 2])
    second = write(ids=[2, 3], mode="merge")
    third = write(ids=[3, 4], mode="append")

    assert third.success
    assert ids(third) == [1, 2, 3, 3, 4]
    versions = [run.metadata["table_version"] for run in (first, second, third)]
    assert versions == [1, 2, 3]
    assert third.metadata["dagster/row_count"] == 5
    assert third.metadata["table_files"] == 2  # the merge has replaced the first one
    assert third.metadata["table_size_bytes"] > second.metadata["table_size_bytes"]


def test_a_partition_is_overwritten_and_the_table_is_counted(write: Write, ids: Ids) -> None:
    write(ids=[1, 2, 3], mode="partition", day="2024-01-01")
    write(ids=[4, 5], mode="partition", day="2024-01-02")
    run = write(ids=[6], mode="partition", day="2024-01-01")

    assert ids(run) == [4, 5, 6]
    assert run.metadata["dagster/partition_row_count"] == 1
    assert run.metadata["dagster/row_count"] == 3


def test_a_table_of_100_mib_is_uploaded_in_parts(write: Write, ids: Ids, lake: FaultProxy) -> None:
    run = write(mebibytes=100)

    assert ids(run) == list(range(100))
    assert run.metadata["table_size_bytes"] > 100 << 20
    assert sum("partNumber=" in path for _, path in lake.seen) > 5


def test_a_filter_reads_only_the_files_that_it_needs(write: Write, lake: FaultProxy) -> None:
    for number in range(1, 6):
        write(ids=[number], mode="partition", day=f"2024-01-0{number}")
    lake.reset()

    run = write(where="day >= '2024-01-04' AND id > 4")

    assert "found [5]" in [message for _, message in run.logged]
    read = {unquote(path) for method, path in lake.seen if method == "GET" and ".parquet" in path}
    assert {path.split("day=")[1][:10] for path in read} <= {"2024-01-04", "2024-01-05"}


def test_partitions_written_at_once_are_all_there(
    lake_client: PipesCloudFunctionClient,
    function_url: str,
    lake_settings: Mapping[str, str],
    partitions: Partitions,
    ids: Ids,
) -> None:
    @dg.asset(
        partitions_def=dg.DailyPartitionsDefinition("2024-01-01", end_date="2027-01-01"),
        backfill_policy=dg.BackfillPolicy.single_run(),
        name="thing",
    )
    def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from lake_client.run_partitions(
            context=context,
            function_url=function_url,
            max_in_flight=20,
            event={
                "task": "tables",
                "mode": "partition",
                "dl_bucket": f"{lake_settings['LAKE_URI']}/at-once",
            },
        )

    assert partitions.run(thing, *days(30))

    table = pl.scan_delta(DeltaTable(f"{lake_settings['LAKE_URI']}/at-once/thing")).collect()
    assert sorted(table["day"]) == sorted(days(30) * 3)


# With faults

FAULTS: dict[str, tuple[Fault, Callable[[Request], bool]]] = {
    "503 for rows": (respond(503), is_data),
    "503 for rows that are stored": (respond_after(503), is_data),
    "429 for rows": (respond(429), is_data),
    "cut connection for rows": (cut, is_data),
    "503 for a commit": (respond(503), is_commit),
    "503 for a commit that is done": (respond_after(503), is_commit),
    "lost response to a commit": (cut_after, is_commit),
    "412 for a commit": (respond(412), is_commit),
    "429 for a commit": (respond(429), is_commit),
    "503 for a list": (respond(503), is_list),
}


@pytest.mark.parametrize("mode", ["overwrite", "append", "merge", "partition"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_neither_loses_nor_doubles_rows(
    write: Write, ids: Ids, lake: FaultProxy, name: str, mode: str
) -> None:
    fault, when = FAULTS[name]
    before = write(ids=[1, 2], mode=mode, day="2024-01-01").metadata["table_version"]
    lake.fail(fault, when=when)

    run = write(ids=[2, 3], mode=mode, day="2024-01-01")

    assert run.success, run.failure
    assert ids(run) == {"append": [1, 2, 2, 3], "merge": [1, 2, 3]}.get(mode, [2, 3])
    assert run.metadata["table_version"] == before + 1  # and not committed twice


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_while_a_table_is_created_neither_loses_nor_doubles_rows(
    write: Write, ids: Ids, lake: FaultProxy, name: str
) -> None:
    fault, when = FAULTS[name]
    lake.fail(fault, when=when)

    run = write(ids=[2, 3], mode="append")

    assert run.success, run.failure
    assert ids(run) == [2, 3]


@pytest.mark.parametrize("mode", ["overwrite", "append", "merge", "partition"])
def test_a_commit_that_cannot_be_looked_up_is_unknown(
    write: Write, lake: FaultProxy, mode: str
) -> None:
    write(ids=[1], mode=mode, day="2024-01-01")

    def lose_and_refuse(request: Request) -> None:
        request.forward()
        lake.fail_always(respond(400), when=is_list)

    lake.fail(lose_and_refuse, when=is_commit)

    run = write(ids=[2], mode=mode, day="2024-01-01")

    assert not run.success
    assert "WriteUnknownError: It is not known whether the rows were written" in run.failure


def test_parts_of_a_large_table_that_fail_are_uploaded_again(
    write: Write, ids: Ids, lake: FaultProxy
) -> None:
    lake.fail(respond(503), cut, respond_after(503), cut_after, when=is_data)

    run = write(mebibytes=30)

    assert run.success, run.failure
    assert ids(run) == list(range(30))


def test_a_token_that_expires_during_a_write_is_renewed(
    serve_with_lake: Callable[..., Any],
    lake_settings: Mapping[str, str],
    write: Write,
    ids: Ids,
) -> None:
    def slowly(request: Request) -> Response:
        time.sleep(1.2)
        return request.forward()

    with (
        lake_server(lake_settings["STORAGE_EMULATOR_HOST"], token_lifetime=3) as settings,
        fault_proxy(settings["GOOGLE_BASE_URL"]) as slow,
        serve_with_lake(**{**settings, "GOOGLE_BASE_URL": slow.url}) as url,
    ):
        slow.fail_always(slowly, when=is_data)
        run = write(url=url, mebibytes=40)

    assert run.success, run.failure
    assert ids(run) == list(range(40))


def test_a_token_that_is_refused_is_an_error_that_names_the_account(
    write: Write, ids: Ids, lake: FaultProxy
) -> None:
    before = write(ids=[1])
    lake.fail_always(respond(401), when=is_data)

    run = write(ids=[2])

    assert not run.success
    assert "the credentials of the account are not valid" in run.failure
    assert f"the account is {ACCOUNT}" in run.failure
    assert ids(before) == [1]


@pytest.mark.parametrize(
    "when",
    [is_data, is_commit, is_list],
    ids=["rows", "commit", "list"],
)
def test_a_bucket_that_refuses_is_named_with_the_account_and_the_role(
    write: Write, ids: Ids, lake: FaultProxy, when: Callable[[Request], bool]
) -> None:
    before = write(ids=[1])
    lake.fail_always(respond(403, ACCESS_DENIED), when=when)

    run = write(ids=[2])

    assert not run.success
    assert "LakeAccessError: The table gs://" in run.failure
    assert "the account may not do this. The bucket is my-gcp-project-data-lake" in run.failure
    assert "the account is function@my-project.iam.gserviceaccount.com" in run.failure
    assert "It needs roles/storage.objectUser on the bucket." in run.failure
    assert ids(before) == [1]


def test_a_refusal_while_rows_are_read_is_explained(write: Write, lake: FaultProxy) -> None:
    write(ids=[1])
    lake.fail_always(
        respond(403, ACCESS_DENIED),
        when=lambda request: request.method == "GET" and ".parquet" in unquote(request.path),
    )

    run = write(where="id > 0")

    assert not run.success
    assert "LakeAccessError: The table gs://" in run.failure


@pytest.mark.parametrize("event", [{"mode": "append"}, {"where": "id > 1"}], ids=["write", "read"])
def test_a_bucket_that_does_not_exist_is_named(write: Write, event: dict[str, Any]) -> None:
    run = write(dl_bucket="gs://no-such-bucket", **event)

    assert not run.success
    assert "the bucket does not exist. The bucket is no-such-bucket, " in run.failure
    assert ACCOUNT in run.failure
    assert "roles/storage.objectUser" in run.failure


def test_a_table_that_does_not_exist_is_named(write: Write) -> None:
    run = write(where="id > 1")

    assert not run.success
    assert "There is no table at gs://" in run.failure
    assert "Materialize the asset that writes it first." in run.failure


def test_a_function_without_credentials_fails(
    serve_with_lake: Callable[..., Any], write: Write
) -> None:
    with (
        fault_proxy("http://127.0.0.1:9") as metadata_server,
        serve_with_lake(
            GCE_METADATA_HOST=metadata_server.url.removeprefix("http://"),
            GCE_METADATA_IP=metadata_server.url.removeprefix("http://"),
        ) as url,
    ):
        metadata_server.fail_always(respond(404))
        run = write(url=url)

    assert not run.success
    assert "there is no token for the account" in run.failure


def test_credentials_in_the_home_folder_are_not_used(
    serve_with_lake: Callable[..., Any], write: Write, tmp_path: Path
) -> None:
    """The programs of the local cloud have another home folder."""
    own = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"type": "authorized_user", "client_id": "", "client_secret": ""}')

    with serve_with_lake(GOOGLE_APPLICATION_CREDENTIALS=str(own)) as url:
        assert write(url=url).success
    with serve_with_lake(**{HOME: str(tmp_path)}) as url:
        run = write(url=url)

    assert not run.success  # as without the other home folder
