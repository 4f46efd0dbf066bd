"""Runs Terraform for an environment: `just plan`, `deploy`, `destroy`, `bootstrap`, `settings`.

Without a login to Google Cloud, it runs the steps that need none, and reports the rest.
"""

import os
import shutil
import subprocess
import sys
from typing import NoReturn

from deployment import doctor
from deployment.bundle import make_bundles
from deployment.environments import INFRA, Environment, find_environment
from deployment.errors import DeploymentError
from deployment.google import find_credentials
from deployment.project import function_folders, name_in_cloud, url_variable

_SUBCOMMANDS = {"plan": "plan", "deploy": "apply", "destroy": "destroy"}


def main() -> int:
    """Run the recipe for the environment, both from the command line.

    Returns:
        The exit status: 0, 1 after an error, 130 if interrupted. If Terraform replaced this
        process, its own.
    """
    recipe, name = sys.argv[1:]
    try:
        environment = find_environment(name)
        if recipe == "doctor":
            os.environ.update(expected_settings(environment))
            return doctor.main()
        _require_terraform()
        match recipe:
            case "bootstrap":
                make_state_bucket(environment)
            case "settings":
                show_settings(environment)
            case _:
                run_terraform(recipe, environment)
    except DeploymentError as error:
        print(f"\n{recipe}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _require_terraform() -> None:
    if shutil.which("terraform") is None:
        raise DeploymentError(
            "Terraform is not installed: https://developer.hashicorp.com/terraform/install"
        )


def run_terraform(recipe: str, environment: Environment) -> NoReturn:
    """Plan, deploy or destroy an environment. Terraform asks before it changes anything.

    Args:
        recipe: `plan`, `deploy` or `destroy`.
        environment: The environment.

    Raises:
        DeploymentError: A step before failed, or there are no credentials.
    """
    make_bundles()
    try:
        find_credentials()
    except DeploymentError as error:
        _prepare("init", "-backend=false", "-input=false")
        _prepare("validate")
        raise DeploymentError(
            f"Built the bundles in build/ and validated infra/. Skipped the rest. {error}"
        ) from error
    _open_state(environment)
    _hand_over(_SUBCOMMANDS[recipe], f"-var-file={environment.variables_file}")


def make_state_bucket(environment: Environment) -> NoReturn:
    """Create the bucket for an environment's state. Terraform asks before.

    Args:
        environment: The environment, whose backend file names the bucket.

    Raises:
        DeploymentError: There are no credentials, or Terraform could not start.
    """
    find_credentials()
    state = f"-backend-config=path={environment.name}.tfstate"
    _prepare("init", "-input=false", "-reconfigure", state, folder="bootstrap")
    _hand_over(
        "apply",
        f"-var=project_id={environment['project_id']}",
        f"-var=region={environment['region']}",
        f"-var=state_bucket={environment.state_bucket}",
        folder="bootstrap",
    )


def show_settings(environment: Environment) -> NoReturn:
    """Print only the orchestrator's settings for a deployed environment, from its state.

    Args:
        environment: The environment.

    Raises:
        DeploymentError: There are no credentials, or the state could not be read.
    """
    find_credentials()
    _open_state(environment)
    _hand_over("output", "-raw", "settings")


def expected_settings(environment: Environment) -> dict[str, str]:
    """The orchestrator's settings for an environment, as far as they are known before it exists.

    Args:
        environment: The environment, deployed or not.
    """
    project, region = environment["project_id"], environment["region"]
    host = f"{region}-{project}.cloudfunctions.net"
    urls = {
        url_variable(
            folder
        ): f"https://{host}/{name_in_cloud(folder, environment['function_name'])}"
        for folder in function_folders()
    }
    return {
        **urls,
        "FUNCTION_AUDIENCE": "",
        "GOOGLE_CLOUD_PROJECT": project,
        "GOOGLE_CLOUD_REGION": region,
        "IMPERSONATE_SERVICE_ACCOUNT": "",
        "LAKE_URI": f"gs://{environment['lake_bucket']}",
        "MESSAGES_BUCKET": environment["messages_bucket"],
    }


def _open_state(environment: Environment) -> None:
    """Make Terraform use the environment's state."""
    backend = f"-backend-config={environment.backend_file}"
    try:
        _prepare("init", "-input=false", "-reconfigure", backend)
    except DeploymentError as error:
        raise DeploymentError(
            f"{error} If the bucket for the state does not exist, create it: uv run just bootstrap "
            f"{environment.name}"
        ) from error


def _prepare(*command: str, folder: str = ".") -> None:
    """Run Terraform in a folder of infra/, and print its output only if it fails."""
    done = subprocess.run(
        ["terraform", f"-chdir={INFRA / folder}", *command], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout.decode())
        raise DeploymentError(f"terraform {command[0]} failed.")


def _hand_over(*command: str, folder: str = ".") -> NoReturn:
    """Replace this process with Terraform, in a folder of infra/.

    Ctrl-C then interrupts Terraform itself, which can take its time to save its state.
    """
    os.execvp("terraform", ["terraform", f"-chdir={INFRA / folder}", *command])


if __name__ == "__main__":
    sys.exit(main())
