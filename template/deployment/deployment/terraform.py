"""Runs Terraform for an environment: `just plan`, `deploy`, `destroy`, `bootstrap`, `settings`.

Where nobody is logged in to Google Cloud, all that needs no cloud is done, and the rest is named.
"""

import os
import shutil
import subprocess
import sys
from typing import NoReturn

from deployment import doctor
from deployment.bundle import make_bundle
from deployment.environments import INFRA, Environment, find_environment, read_text_values
from deployment.errors import DeploymentError
from deployment.google import find_credentials

_SUBCOMMANDS = {"plan": "plan", "deploy": "apply", "destroy": "destroy"}


def main() -> int:
    """Do what the command line says: a recipe's name, and an environment's.

    Returns:
        The exit status: 0, 1 for a failure, 130 if interrupted; where Terraform has taken over, its
        own.
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
    """Plan, deploy or destroy an environment; Terraform asks before it changes anything.

    Args:
        recipe: `plan`, `deploy` or `destroy`.
        environment: The environment to do that to.

    Raises:
        DeploymentError: It was not done.
    """
    make_bundle()
    try:
        find_credentials()
    except DeploymentError as error:
        _prepare("init", "-backend=false", "-input=false")
        _prepare("validate")
        raise DeploymentError(
            "build/function.zip is made and infra/ is valid; the rest was skipped, since it needs "
            f"Google Cloud. {error}"
        ) from error
    _open_state(environment)
    _hand_over(_SUBCOMMANDS[recipe], f"-var-file={environment.variables_file}")


def make_state_bucket(environment: Environment) -> NoReturn:
    """Make the bucket that holds an environment's state; Terraform asks before it does.

    Args:
        environment: The environment. Its backend file names the bucket.

    Raises:
        DeploymentError: It was not made.
    """
    find_credentials()
    bucket = read_text_values(environment.backend_file.read_text())["bucket"]
    state = f"-backend-config=path={environment.name}.tfstate"
    _prepare("init", "-input=false", "-reconfigure", state, folder="bootstrap")
    _hand_over(
        "apply",
        f"-var=project_id={environment['project_id']}",
        f"-var=region={environment['region']}",
        f"-var=state_bucket={bucket}",
        folder="bootstrap",
    )


def show_settings(environment: Environment) -> NoReturn:
    """Print the orchestrator's settings for a deployed environment, and nothing else.

    Args:
        environment: The environment. Its settings are in its state.

    Raises:
        DeploymentError: They are not known.
    """
    find_credentials()
    _open_state(environment)
    _hand_over("output", "-raw", "settings")


def expected_settings(environment: Environment) -> dict[str, str]:
    """The orchestrator's settings, as far as they are known before the environment is there.

    Args:
        environment: The environment, deployed or not.
    """
    project, region = environment["project_id"], environment["region"]
    host = f"{region}-{project}.cloudfunctions.net"
    return {
        "FUNCTION_AUDIENCE": "",
        "FUNCTION_URL": f"https://{host}/{environment['function_name']}",
        "GOOGLE_CLOUD_PROJECT": project,
        "GOOGLE_CLOUD_REGION": region,
        "IMPERSONATE_SERVICE_ACCOUNT": "",
        "LAKE_URI": f"gs://{environment['lake_bucket']}",
        "MESSAGES_BUCKET": environment["messages_bucket"],
    }


def _open_state(environment: Environment) -> None:
    """Have Terraform use the environment's state."""
    backend = f"-backend-config={environment.backend_file}"
    try:
        _prepare("init", "-input=false", "-reconfigure", backend)
    except DeploymentError as error:
        raise DeploymentError(
            f"{error} If the bucket for its state does not exist: uv run just bootstrap "
            f"{environment.name}"
        ) from error


def _prepare(*command: str, folder: str = ".") -> None:
    """Run Terraform in a folder of infra/; it speaks only if it fails."""
    done = subprocess.run(
        ["terraform", f"-chdir={INFRA / folder}", *command], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout.decode())
        raise DeploymentError(f"terraform {command[0]} has failed.")


def _hand_over(*command: str, folder: str = ".") -> NoReturn:
    """Become Terraform, in a folder of infra/.

    So it is Terraform itself that is interrupted by Ctrl-C: it has to leave its state in order,
    which takes longer than a program that has started another one waits for it.
    """
    os.execvp("terraform", ["terraform", f"-chdir={INFRA / folder}", *command])


if __name__ == "__main__":
    sys.exit(main())
