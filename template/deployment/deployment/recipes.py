"""The recipes for an environment: `just plan`, `deploy`, `destroy`, `bootstrap`, `settings`.

It also runs `just doctor ENVIRONMENT`.

Without a login to Google Cloud, the first three run the steps that need none, and report the rest.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from deployment import doctor, services, terraform
from deployment.bundle import Bundle, deployed_bundle, make_bundles
from deployment.environments import Environment, find_environment
from deployment.errors import DeploymentError
from deployment.google import (
    GoogleApi,
    GoogleError,
    find_bucket,
    find_credentials,
    find_project,
)
from deployment.settings import expected_settings, write_settings
from deployment.targets import TARGETS


def main() -> int:
    """Run the recipe for the environment, both from the command line.

    Returns:
        The exit status: 0, 1 after an error, 130 if interrupted. If Terraform replaced this
        process, its own.
    """
    recipe, name, *options = sys.argv[1:]
    try:
        environment = find_environment(name)
        if recipe == "doctor":
            os.environ.update(expected_settings(environment))
            return doctor.main(environment.name)
        terraform.require_terraform()
        terraform.lock()
        match recipe:
            case "bootstrap":
                bootstrap(environment)
            case "settings":
                show_settings(environment, options)
            case "deploy":
                return deploy(environment)
            case _:
                _prepare_environment(environment)
                terraform.hand_over(recipe, _variables(environment))
    except DeploymentError as error:
        print(f"\n{recipe}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _prepare_environment(environment: Environment) -> list[Bundle]:
    """Build the bundles, and make Terraform use the environment's state.

    Raises:
        DeploymentError: A step failed, or there are no credentials.
    """
    try:
        find_credentials()
    except DeploymentError as error:
        print(f"{error}\nUntil then, only the bundles and infra/ can be checked.", flush=True)
        make_bundles()
        terraform.prepare("init", "-backend=false", "-input=false")
        terraform.prepare("validate")
        raise DeploymentError(
            f"Built the bundles in build/ and validated infra/. Skipped the rest. {error}"
        ) from error
    bundles = make_bundles()
    terraform.open_state(environment)
    return bundles


def deploy(environment: Environment, wait: float = 90.0) -> int:
    """Deploy an environment. Terraform asks before it changes anything.

    Google takes minutes to make new accounts, roles and services effective everywhere. If the
    deployment fails for that reason, this repeats it once, without asking again.

    Args:
        environment: The environment.
        wait: How long to wait for Google before the repetition, in seconds.

    Returns:
        The exit status of Terraform.

    Raises:
        DeploymentError: A step before failed, or there are no credentials.
    """
    bundles = _prepare_environment(environment)
    _warn_of_other_code(environment, bundles)
    before = terraform.list_resources()
    status, errors = terraform.run("apply", _variables(environment))
    reason = transient_error(errors, has_new_grants=_has_new_grants(before)) if status else None
    if reason is None:
        return status
    print(
        f"\nThe deployment failed because {reason}. That can happen in a new project: Google takes "
        f"minutes until new accounts and roles are effective. Deploying the rest again in "
        f"{wait:.0f} s. Ctrl-C stops.",
        flush=True,
    )
    time.sleep(wait)
    status, _ = terraform.run("apply", "-auto-approve", _variables(environment))
    return status


def transient_error(errors: str, *, has_new_grants: bool) -> str | None:
    """The reason why the same deployment may succeed in a few minutes, or None.

    Args:
        errors: Terraform's error output.
        has_new_grants: Whether the deployment has granted roles, or enabled services.

    Returns:
        The rest of a sentence that starts with "because".
    """
    text = " ".join(errors.replace("│", " ").split())  # Terraform breaks its lines
    for target in TARGETS:
        for pattern, reason in target.transient_errors.items():
            if re.search(pattern, text):
                return reason
    if has_new_grants and re.search(r"\bError 403\b", text):
        return "Google rejected a request (403) minutes after roles were granted"
    return None


def _warn_of_other_code(environment: Environment, bundles: list[Bundle]) -> None:
    """Report what runs other code than the bundles, such as that of a later commit."""
    with closing(GoogleApi(find_credentials())) as api:
        for target in TARGETS:
            folders = target.find_folders()
            for bundle in (bundle for bundle in bundles if bundle.folder in folders):
                try:
                    resource = api.request("GET", target.url(environment, bundle.folder))
                except GoogleError:
                    continue  # not deployed yet, or not visible
                deployed = deployed_bundle(resource)
                if deployed not in (None, bundle.label):
                    print(
                        f"{target.name(environment, bundle.folder)} in {environment.name} "
                        f"{target.verb} other code ({deployed[:12]}) than that of this checkout "
                        f"({bundle.sha256[:12]}). {target.replacement}",
                        flush=True,
                    )


def bootstrap(environment: Environment) -> None:
    """Turn on Google's services, and create the bucket for an environment's state.

    Terraform asks before it creates the bucket.

    Args:
        environment: The environment, whose backend file names the bucket.

    Raises:
        DeploymentError: There are no credentials, or Google rejected a request.
    """
    bucket = environment.state_bucket
    with closing(GoogleApi(find_credentials())) as api:
        services.turn_on(api, environment["project_id"])
        if _exists(api, environment):
            print(f"The bucket {bucket} exists already.")
            return
    state = f"-backend-config=path={environment.name}.tfstate"
    terraform.prepare("init", "-input=false", "-reconfigure", state, folder="bootstrap")
    terraform.hand_over(
        "apply",
        f"-var=project_id={environment['project_id']}",
        f"-var=region={environment['region']}",
        f"-var=state_bucket={bucket}",
        folder="bootstrap",
    )


def _exists(api: GoogleApi, environment: Environment) -> bool:
    """Whether the bucket for the state exists, in the environment's project."""
    name = environment.state_bucket
    fix = f"Choose another name in infra/environments/{environment.name}.gcs.tfbackend."
    try:
        bucket = find_bucket(api, name)
    except GoogleError as error:
        if error.status == 404:
            return False
        if error.status == 403:
            raise DeploymentError(
                f"The bucket {name} has another owner, or you may not see it ({error}). {fix}"
            ) from error
        raise
    project = find_project(api, environment["project_id"])
    if str(bucket.get("projectNumber")) != str(project.get("projectNumber")):
        raise DeploymentError(f"The bucket {name} belongs to another project. {fix}")
    return True


def show_settings(environment: Environment, options: Sequence[str]) -> None:
    """Print the orchestrator's settings for a deployed environment, from its state, or write them.

    Args:
        environment: The environment.
        options: `--write` writes them to orchestrator/.env. Other lines of the file are kept.

    Raises:
        DeploymentError: There are no credentials, or the state could not be read. The file is
            unchanged.
    """
    if unknown := [option for option in options if option != "--write"]:
        raise DeploymentError(f"Unknown option {unknown[0]}. There is: --write")
    find_credentials()
    terraform.open_state(environment)
    settings = terraform.read_output("settings")
    if not options:
        print(settings, end="")
        return
    write_settings(settings)
    print(f"Wrote orchestrator/.env for {environment.name}.")


def _variables(environment: Environment) -> str:
    return f"-var-file={environment.variables_file}"


def _has_new_grants(before: set[str]) -> bool:
    """Whether roles or services are new in the state."""
    return any(
        re.search("_iam_member|_project_service", name)
        for name in terraform.list_resources() - before
    )


if __name__ == "__main__":
    sys.exit(main())
