"""The cloud functions of the local cloud, served as in Google Cloud."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen

from local_cloud.cloud import HEARTBEAT_INTERVAL
from local_cloud.credentials import OWN_HOME, uv_run
from local_cloud.processes import free_port, running
from local_cloud.project import TASKS, own_secrets, task_folders

FUNCTION_TIMEOUT = "300"  # seconds


@contextmanager
def cloud_functions(storage: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Serve all functions during the block, as `cloud_function` does.

    Args:
        storage: The variables that `cloud_storage` yielded.

    Yields:
        The environment variables that Dagster needs to call them.
    """
    settings: dict[str, str] = {}
    with ExitStack() as stack:
        for folder in task_folders():
            settings |= stack.enter_context(cloud_function(storage, folder=folder))
        yield settings


@contextmanager
def cloud_function(
    storage: Mapping[str, str], port: int | None = None, folder: Path = TASKS
) -> Iterator[dict[str, str]]:
    """Serve a function with the Functions Framework, as Google Cloud does, during the block.

    Args:
        storage: The variables that `cloud_storage` yielded.
        port: The port to listen on. The default is a free port.
        folder: The folder of the function.

    Yields:
        The environment variables that Dagster needs to call it.
    """
    with function_server(folder, storage, port or free_port()) as (_, settings):
        yield settings


@contextmanager
def function_server(
    folder: Path,
    storage: Mapping[str, str],
    port: int,
    on_line: Callable[[str], None] | None = None,
    program: Sequence[str] = ("functions-framework",),
) -> Iterator[tuple[Popen[bytes], dict[str, str]]]:
    """Serve a function during the block, as `cloud_function` does.

    Its environment has the variables in its `.env`, which are its secrets in Google Cloud.

    Args:
        folder: The folder of the function.
        storage: The variables that `cloud_storage` yielded.
        port: The port to listen on.
        on_line: Called with each line of the server's output, as by `running`.
        program: The program that serves the function, in its environment.

    Yields:
        The server's process, and the environment variables that Dagster needs to call it.
    """
    command = uv_run(storage, *program, "--target=main", "--host=127.0.0.1", f"--port={port}")
    secrets = own_secrets(folder)
    own = {
        "FUNCTION_NAME": folder.name,
        "FUNCTION_TIMEOUT": FUNCTION_TIMEOUT,
        "HEARTBEAT_INTERVAL": HEARTBEAT_INTERVAL,
    }
    with running(
        "The cloud function" + ("" if folder == TASKS else f" {folder.name}"),
        command,
        port=port,
        environment={**secrets, **own, **storage, "HOME": OWN_HOME},
        directory=folder,
        on_line=on_line,
    ) as process:
        timeout = storage.get("FUNCTION_TIMEOUT", FUNCTION_TIMEOUT)
        yield (
            process,
            {url_variable(folder): f"http://127.0.0.1:{port}", "FUNCTION_TIMEOUT": timeout},
        )


def url_variable(folder: Path) -> str:
    """The environment variable with the URL of a function.

    Args:
        folder: The folder of the function.
    """
    name = folder.name.upper().replace("-", "_")
    return "FUNCTION_URL" if folder == TASKS else f"FUNCTION_URL_{name}"
