"""Deploys new code to what exists in an environment, with the roles of the deployer. CI does so.

At an older commit, it rolls back.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from deployment.bundle import Bundle, make_bundle
from deployment.environments import Environment, find_environment
from deployment.errors import DeploymentError
from deployment.google import SCOPES, GoogleApi, find_credentials
from deployment.target import Target
from google.auth import identity_pool
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError


def deploy_code(target: Target, update: Callable[[GoogleApi, Environment, Bundle], bool]) -> int:
    """Deploy code to the environment on the command line.

    With the name of a folder after it, only that of this folder is deployed.

    Args:
        target: What runs the code.
        update: Updates the resource that runs a bundle; returns whether that was necessary.

    Returns:
        The exit status, as that of `run_deployment`.
    """

    def deploy(environment: Environment) -> None:
        bundles = [make_bundle(folder) for folder in _chosen(target, sys.argv[2:])]
        with deployer_api() as api:
            for bundle in bundles:
                is_new = update(api, environment, bundle)
                name = target.name(environment, bundle.folder)
                now = target.verb if is_new else f"already {target.verb}"
                print(f"{name} in {environment.name} {now} {bundle.sha256}", flush=True)

    return run_deployment(deploy)


def run_deployment(deploy: Callable[[Environment], None]) -> int:
    """Deploy to the environment on the command line, and report why that failed.

    Args:
        deploy: Deploys to an environment.

    Returns:
        The exit status: 0, also if CI may not deploy to the environment yet; 1 for a failure; 130
        if interrupted.
    """
    try:
        environment = find_environment(sys.argv[1])
        if os.environ.get("CI") and not environment.is_federated:
            print(
                f"Skipped: CI cannot deploy to {environment.name}, because git_repository is not "
                f"set in infra/environments/{environment.name}.tfvars. See infra/README.md."
            )
            return 0
        deploy(environment)
    except (DeploymentError, GoogleAuthError) as error:
        print(f"Not deployed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. A deployment that has started continues.", file=sys.stderr)
        return 130
    return 0


@contextmanager
def deployer_api() -> Iterator[GoogleApi]:
    """Send requests as the deployer, or as the user, until the end of the block.

    Raises:
        DeploymentError: There are no credentials.
    """
    with closing(GoogleApi(deployer_credentials())) as api:
        yield api


def _chosen(target: Target, names: Sequence[str]) -> list[Path]:
    """The folder that is named, or all."""
    folders = target.find_folders()
    if not names:
        return folders
    known = {folder.name: folder for folder in folders}
    if names[0] not in known:
        raise DeploymentError(
            f"There is no {target.kind} {names[0]!r}. The {target.kind}s are: {', '.join(known)}."
        )
    return [known[names[0]]]


def deployer_credentials() -> Credentials:
    """Return the application default credentials, or exchange the ID token of the CI job.

    Where the CI job only has an ID token, `WORKLOAD_IDENTITY_PROVIDER` is set, and workload
    identity federation exchanges the token for credentials of the deployer.

    Raises:
        DeploymentError: There are no credentials.
    """
    provider = os.environ.get("WORKLOAD_IDENTITY_PROVIDER")
    if not provider:
        return _default_credentials()
    needed = ("ID_TOKEN", "DEPLOYER_SERVICE_ACCOUNT")
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise DeploymentError(
            f"WORKLOAD_IDENTITY_PROVIDER is set, but not {' and '.join(missing)}. "
            "See infra/README.md."
        )
    account = os.environ["DEPLOYER_SERVICE_ACCOUNT"]
    return identity_pool.Credentials(
        audience=f"//iam.googleapis.com/{provider}",
        subject_token_type="urn:ietf:params:oauth:token-type:jwt",  # noqa: S106  # no secret
        token_url="https://sts.googleapis.com/v1/token",  # noqa: S106  # no secret
        subject_token_supplier=_IdToken(),
        service_account_impersonation_url=(
            "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"
            f"{account}:generateAccessToken"
        ),
        scopes=SCOPES,
    )


def _default_credentials() -> Credentials:
    """The application default credentials. In CI, a person's login is no way to get them."""
    try:
        return find_credentials()
    except DeploymentError as error:
        if not os.environ.get("CI"):
            raise
        raise DeploymentError(
            "This job has no credentials for Google Cloud. Set WORKLOAD_IDENTITY_PROVIDER and "
            "DEPLOYER_SERVICE_ACCOUNT for its environment, as infra/README.md describes."
        ) from error


class _IdToken(identity_pool.SubjectTokenSupplier):
    def get_subject_token(self, context: object, request: object) -> str:
        return os.environ["ID_TOKEN"]
