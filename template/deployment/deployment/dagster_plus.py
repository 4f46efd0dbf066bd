"""Deploys the code location to Dagster+: `just deploy-dagster ENVIRONMENT`.

An agent of Dagster+ runs its image, in the Google Cloud project of the environment. An environment
whose `deploy_on` is `pull_request` is for branch deployments: the code goes to that of the pull
request, or of the branch that is checked out. `just close-branch ENVIRONMENT` closes it.
"""

import os
import re
import shutil
import subprocess
import sys

from deployment.deployer import deployer_api, run_deployment
from deployment.environments import Environment
from deployment.errors import DeploymentError
from deployment.orchestrator import orchestrator_image
from deployment.project import ORCHESTRATOR, PROJECT, UV

_ORGANIZATION, _DEPLOYMENT = "DAGSTER_CLOUD_ORGANIZATION", "DAGSTER_CLOUD_DEPLOYMENT"
_TOKEN, _URL = "DAGSTER_CLOUD_API_TOKEN", "DAGSTER_CLOUD_URL"
_LOAD_TIMEOUT = 20 * 60  # seconds. The agent fetches the image, and loads the definitions
_SESSION = PROJECT / "build" / "dagster_plus"
_LOCATION = _SESSION / ORCHESTRATOR.name  # the code location is named after the folder


def deploy(environment: Environment) -> None:
    """Build the image, unless it exists, and let Dagster+ load the code location from it.

    Args:
        environment: The environment.

    Raises:
        DeploymentError: The image could not be built, or the code location not loaded.
    """
    if os.environ.get("CI") and not os.environ.get(_DEPLOYMENT):
        print(
            f"Skipped: {environment.name} has no deployment in Dagster+, because {_DEPLOYMENT} is "
            "not set for it. See infra/README.md."
        )
        return
    _require(_ORGANIZATION, _DEPLOYMENT, _TOKEN, environment=environment)
    with deployer_api() as api:
        address = orchestrator_image(api, environment)
    print(f"The image is {address}", flush=True)
    load(address, is_branch=environment.variables.get("deploy_on") == "pull_request")


def load(address: str, *, is_branch: bool) -> None:
    """Let Dagster+ load the code location from an image, and wait until it has.

    Args:
        address: The address of the image, with its digest.
        is_branch: Whether to load it in the branch deployment of the branch at hand, instead of
            the deployment itself.

    Raises:
        DeploymentError: Dagster+ rejected it, no agent runs, or the definitions do not load.
    """
    # The CLI joins both with a colon, which results in the address again.
    registry, _, tag = address.rpartition(":")
    _write_configuration(registry)
    kind = f"--deployment-type={'branch' if is_branch else 'full'}"
    start = ("dg", "plus", "deploy", "start")  # it reads build.yaml; the others, what it writes
    _run(*start, kind, "--yes", f"--target-path={_LOCATION}")
    _run("dagster-cloud", "ci", "set-build-output", f"--image-tag={tag}")
    _run("dagster-cloud", "ci", "deploy")


def close(environment: Environment) -> None:
    """Close the branch deployment of the pull request, or of the branch that is checked out.

    Args:
        environment: The environment for branch deployments.

    Raises:
        DeploymentError: Dagster+ rejected it.
    """
    _require(_ORGANIZATION, _TOKEN, environment=environment)
    _run("dagster-cloud", "ci", "branch-deployment", str(PROJECT), "--mark-closed")


def _require(*names: str, environment: Environment) -> None:
    if missing := [name for name in names if not os.environ.get(name)]:
        raise DeploymentError(
            f"{' and '.join(missing)} must be set, to deploy {environment.name} to Dagster+. "
            "See infra/README.md."
        )


def _write_configuration(registry: str) -> None:
    """Copy the files that the CLI reads, with the registry of the environment in build.yaml."""
    if not (ORCHESTRATOR / "build.yaml").exists():
        raise DeploymentError(
            f"{ORCHESTRATOR.name}/build.yaml, which has the registry of the image, is missing. "
            f"The template has one, in {ORCHESTRATOR.name}/."
        )
    shutil.rmtree(_SESSION, ignore_errors=True)
    _LOCATION.mkdir(parents=True)
    for name in ("pyproject.toml", "build.yaml", "container_context.yaml"):
        if (ORCHESTRATOR / name).exists():
            shutil.copy(ORCHESTRATOR / name, _LOCATION)
    file = _LOCATION / "build.yaml"
    build = re.sub(r"^registry:.*", f"registry: {registry}", file.read_text(), flags=re.MULTILINE)
    file.write_text(build)


def _run(*command: str) -> None:
    """Run a command of Dagster+'s CLI, which prints its own errors."""
    variables = {
        "DAGSTER_CLOUD_LOCATION_LOAD_TIMEOUT": str(_LOAD_TIMEOUT),
        **os.environ,
        "DAGSTER_BUILD_STATEDIR": str(_SESSION / "state"),
    }
    if variables.get(_URL) and "branch-deployment" in command:
        del variables[_ORGANIZATION]  # there, it would override the URL
    uv_run = [UV, "run", "--quiet", "--locked", "--directory", str(ORCHESTRATOR)]
    status = subprocess.run(
        [*uv_run, "--only-group=dagster-plus", *command], check=False, env=variables
    ).returncode
    if status != 0:
        raise DeploymentError(f"`{' '.join(command[:3])}` failed: see above.")


if __name__ == "__main__":
    sys.exit(run_deployment(close if sys.argv[2:] == ["close"] else deploy))
