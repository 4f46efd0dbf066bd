"""What the benchmarks have in common: a served function, a client of it, the machine."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader
from google.cloud import storage
from local_cloud.functions import cloud_function
from local_cloud.project import TASKS

FUNCTIONS = Path(__file__).parent / "functions"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@contextmanager
def serve(source: Path, **environment: str) -> Iterator[str]:
    """Serve a function, in the environment of the cloud function; yield its URL."""
    environment |= {"FUNCTION_SOURCE": str(source), "PYTHONPATH": str(TASKS)}
    with cloud_function(environment) as settings:
        yield settings["FUNCTION_URL"]


def make_client(**options: Any) -> PipesCloudFunctionClient:
    """A client that reads the messages from the emulated storage."""
    return PipesCloudFunctionClient(
        PipesCloudStorageMessageReader(
            bucket=os.environ["MESSAGES_BUCKET"], client=storage.Client()
        ),
        **options,
    )


def print_machine() -> None:
    """Say where the figures come from."""
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, Dagster {dg.__version__}"
    )
