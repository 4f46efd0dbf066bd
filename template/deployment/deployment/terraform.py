"""Runs Terraform for an environment: `just plan`, `deploy`, `destroy`, `bootstrap`, `settings`.

Where nobody is logged in to Google Cloud, all that needs no cloud is done, and the rest is named.
"""

import os
import shutil
import subprocess
import sys

from deployment import doctor
from deployment.bundle import make_bundle
from deployment.environments import INFRA, Environment, find_environment, read_text_values
from deployment.errors import DeploymentError
from deployment.google import find_credentials

_SUBCOMMANDS = {"plan": "plan", "deploy": "apply", "destroy": "destroy"}


def main() -> int:
    """Do what the command line says: a recipe's name, and an environment's.

    Returns:
        The exit status: 0, or 1 for a failure.
    """
    recipe, name = sys.argv[1:]
    try:
        environment = find_environment(name)
        if shutil.which("terraform") is None:
            raise DeploymentError(
                "Terraform is not installed: https://developer.hashicorp.com/terraform/install"
            )
        match recipe:
            case "bootstrap":
                make_state_bucket(environment)
            case "settings":
                show_settings(environment)
            case "doctor":
                os.environ.update(expected_settings(environment))
                return doctor.main()
            case _:
                run_terraform(recipe, environment)
    except DeploymentError as error:
        print(f"\n{recipe}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # Terraform was interrupted, too, and has ended in good order
        return 130
    return 0


def run_terraform(recipe: str, environment: Environment) -> None:
    """Plan, deploy or destroy an environment; Terraform asks before it changes anything.

    Raises:
        DeploymentError: It was not done.
    """
    make_bundle()
    try:
        find_credentials()
    except DeploymentError as error:
        _terraform("init", "-backend=false", "-input=false")
        _terraform("validate")
        raise DeploymentError(
            "build/function.zip is made and infra/ is valid; the rest was skipped, since it needs "
            f"Google Cloud. {error}"
        ) from error
    _open_state(environment)
    _terraform(_SUBCOMMANDS[recipe], f"-var-file={environment.variables_file}")


def make_state_bucket(environment: Environment) -> None:
    """Make the bucket that holds an environment's state.

    Raises:
        DeploymentError: It was not made.
    """
    find_credentials()
    bucket = read_text_values(environment.backend_file.read_text())["bucket"]
    state = f"-backend-config=path={environment.name}.tfstate"
    _terraform("init", "-input=false", "-reconfigure", state, folder="bootstrap")
    _terraform(
        "apply",
        f"-var=project_id={environment['project_id']}",
        f"-var=region={environment['region']}",
        f"-var=state_bucket={bucket}",
        folder="bootstrap",
    )


def show_settings(environment: Environment) -> None:
    """Print the orchestrator's settings for a deployed environment, and nothing else.

    Raises:
        DeploymentError: They are not known.
    """
    find_credentials()
    _open_state(environment)
    _terraform("output", "-raw", "settings")


def expected_settings(environment: Environment) -> dict[str, str]:
    """The orchestrator's settings, as far as they are known before the environment is there."""
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
        _terraform("init", "-input=false", "-reconfigure", backend, quiet=True)
    except DeploymentError as error:
        raise DeploymentError(
            f"{error} If the bucket for its state does not exist: just bootstrap {environment.name}"
        ) from error


def _terraform(subcommand: str, *arguments: str, folder: str = ".", quiet: bool = False) -> None:
    """Run Terraform in a folder of infra/; it says itself what it does."""
    done = subprocess.run(
        ["terraform", f"-chdir={INFRA / folder}", subcommand, *arguments],
        stdout=subprocess.DEVNULL if quiet else None,
        check=False,
    )
    if done.returncode != 0:
        raise DeploymentError(f"terraform {subcommand} has failed.")


if __name__ == "__main__":
    sys.exit(main())
