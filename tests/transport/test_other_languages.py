"""The function in Node.js of the guide, called and read by the client."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
import pytest
import requests
from conftest import eventually, run_asset, write_files_of
from faults import FaultProxy, LateRequest, fault_proxy
from gcp_pipes.orchestrator import PipesCloudFunctionClient

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files in the guide, and their packages."""
    folder = tmp_path_factory.mktemp("nodejs")
    write_files_of("other-functions.md", folder)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True
    )
    return folder


@pytest.fixture(scope="module")
def nodejs_proxy(folder: Path, emulator: Mapping[str, str]) -> Iterator[FaultProxy]:
    """The proxy of `nodejs`."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    framework = folder / "node_modules" / ".bin" / "functions-framework"
    with subprocess.Popen([framework, "--target=main", f"--port={port}"], cwd=folder) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: is_listening(url), 30)
            with fault_proxy(url) as proxy:
                yield proxy
        finally:
            server.kill()


@pytest.fixture
def nodejs(nodejs_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy between the client and the function."""
    yield nodejs_proxy
    nodejs_proxy.reset()


@pytest.fixture
def words(client: PipesCloudFunctionClient, nodejs: FaultProxy) -> dg.AssetsDefinition:
    """An asset that calls the function."""

    @dg.asset
    def words(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return client.run(
            context=context, function_url=nodejs.url, event={"text": "as simple as that"}
        ).get_materialize_result()

    return words


def is_listening(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code > 0
    except requests.RequestException:
        return False


def test_the_function_has_at_most_60_lines(folder: Path) -> None:
    assert len((folder / "index.js").read_text().splitlines()) <= 60


def test_the_messages_of_the_function_are_in_the_event_log(words: dg.AssetsDefinition) -> None:
    run = run_asset(words)

    assert run.success
    assert ("INFO", "Counted 4 words") in run.logged
    assert run.metadata["words"] == 4
    assert run.call["messages"] == "4 in 2 chunks"
    assert run.reports == []


def test_an_exception_of_the_function_fails_the_step_with_its_stack(
    client: PipesCloudFunctionClient, nodejs: FaultProxy
) -> None:
    @dg.asset
    def words(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return client.run(
            context=context, function_url=nodejs.url, event={"text": 3}
        ).get_materialize_result()

    run = run_asset(words)

    assert not run.success
    assert "raised an exception: TypeError: event.text.split is not a function\n" in run.failure
    assert re.search(r"index\.js:\d+:\d+\)\n.*TypeError: event.text", run.failure, re.DOTALL)


def test_a_retry_prevents_an_earlier_attempt_from_starting(
    words: dg.AssetsDefinition, nodejs: FaultProxy
) -> None:
    late = LateRequest(503)
    nodejs.fail(late)

    run = run_asset(words)
    late.arrive()

    assert run.success
    assert run.call["attempts"] == "2"
    assert late.response is not None
    assert late.response.status == 409
