"""Runs Terraform in infra/."""

import fcntl
import os
import shutil
import subprocess
import sys
from typing import NoReturn

from deployment.environments import INFRA, Environment
from deployment.errors import DeploymentError
from deployment.programs import run_to_end
from deployment.project import PROJECT


def require_terraform() -> None:
    """Make sure that Terraform is installed.

    Raises:
        DeploymentError: It is not.
    """
    if shutil.which("terraform") is None:
        raise DeploymentError(
            "Terraform is not installed: https://developer.hashicorp.com/terraform/install"
        )


def lock() -> None:
    """Make sure that no other recipe uses Terraform in this project, until this process ends.

    All environments share infra/.terraform, which says whose state is open.

    Raises:
        DeploymentError: Another one does.
    """
    file = PROJECT / ".local" / "terraform.lock"
    file.parent.mkdir(exist_ok=True)
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR)
    os.set_inheritable(descriptor, True)  # for `hand_over`
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DeploymentError(
            "Another recipe of this project is using Terraform. Wait until it has ended."
        ) from error


def open_state(environment: Environment) -> None:
    """Make Terraform use the environment's state.

    Args:
        environment: The environment.

    Raises:
        DeploymentError: The state could not be read.
    """
    backend = f"-backend-config={environment.backend_file}"
    try:
        prepare("init", "-input=false", "-reconfigure", backend)
    except DeploymentError as error:
        raise DeploymentError(
            f"{error} If the bucket for the state does not exist, create it: uv run just bootstrap "
            f"{environment.name}"
        ) from error


def list_resources() -> set[str]:
    """The addresses of the resources in the state: none before the first deployment."""
    return set(_capture(*_terraform("state", "list"), stderr=subprocess.DEVNULL)[1].split())


def read_output(name: str) -> str:
    """An output of the environment.

    Args:
        name: The name of the output.

    Raises:
        DeploymentError: The environment does not have it, since it is not deployed yet.
    """
    status, value = _capture(*_terraform("output", "-raw", name))
    if status != 0:
        raise DeploymentError("terraform output failed.")
    return value


def prepare(*command: str, folder: str = ".") -> None:
    """Run Terraform, and print its output only if it fails.

    Args:
        command: The subcommand and its options.
        folder: The folder in infra/.

    Raises:
        DeploymentError: It failed.
    """
    status, printed = _capture(*_terraform(*command, folder=folder))
    if status != 0:
        sys.stderr.write(printed)
        raise DeploymentError(f"terraform {command[0]} failed.")


def run(*command: str) -> tuple[int, str]:
    """Run Terraform in this terminal.

    Ctrl-C interrupts Terraform itself, which can take its time to save its state.

    Args:
        command: The subcommand and its options.

    Returns:
        The exit status, and what it printed as errors.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and Terraform has ended.
    """
    return run_to_end(_terraform(*command))


def hand_over(*command: str, folder: str = ".") -> NoReturn:
    """Replace this process with Terraform.

    Ctrl-C then interrupts Terraform itself, which can take its time to save its state.

    Args:
        command: The subcommand and its options.
        folder: The folder in infra/.
    """
    os.execvp("terraform", _terraform(*command, folder=folder))


def _terraform(*command: str, folder: str = ".") -> list[str]:
    return ["terraform", f"-chdir={INFRA / folder}", *command]


def _capture(*command: str, stderr: int | None = None) -> tuple[int, str]:
    """The exit status and the output of a command."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    return done.returncode, done.stdout
