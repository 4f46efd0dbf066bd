"""Deploys new code to the functions of an environment: `just deploy-function ENVIRONMENT`.

With the name of a folder, it deploys only that function. CI runs this. It only needs the roles of
the deployer: to upload bundles, and to update functions that exist. The old version keeps serving
requests until the new one is built, or if its build fails.
"""

import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from deployment.bundle import Bundle, make_bundle
from deployment.environments import Environment, find_environment
from deployment.errors import DeploymentError
from deployment.google import SCOPES, GoogleApi, GoogleError, find_credentials
from deployment.project import CLOUD_FUNCTION, function_folders, name_in_cloud
from google.auth import identity_pool
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError

_LONGEST_DEPLOYMENT = 20 * 60.0  # seconds; one takes about two minutes
_INTERVAL = 5.0  # seconds between two requests for the state of the function


def main() -> int:
    """Deploy to the environment on the command line.

    Returns:
        The exit status: 0, also if CI may not deploy to the environment yet; 1 for a failure; 130
        if interrupted.
    """
    try:
        environment = find_environment(sys.argv[1])
        folders = _chosen_folders(sys.argv[2:])
        if os.environ.get("CI") and not environment.is_federated:
            print(
                f"Skipped: CI cannot deploy to {environment.name}, because git_repository is not "
                f"set in infra/environments/{environment.name}.tfvars. See infra/README.md."
            )
            return 0
        bundles = [make_bundle(folder) for folder in folders]
        with closing(GoogleApi(deployer_credentials())) as api:
            for bundle in bundles:
                deploy_function(api, environment, bundle)
                name = name_in_cloud(bundle.folder, environment["function_name"])
                print(f"{name} in {environment.name} serves {bundle.sha256}", flush=True)
    except (DeploymentError, GoogleAuthError) as error:
        print(f"Not deployed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. A deployment that has started continues.", file=sys.stderr)
        return 130
    return 0


def _chosen_folders(names: list[str]) -> list[Path]:
    """The folders of the named function, or of all."""
    folders = function_folders()
    if not names:
        return folders
    known = {folder.name: folder for folder in folders}
    if names[0] not in known:
        raise DeploymentError(
            f"There is no function {names[0]!r}. The functions are: {', '.join(known)}."
        )
    return [known[names[0]]]


def deploy_function(api: GoogleApi, environment: Environment, bundle: Bundle) -> None:
    """Upload the bundle, update the function, and wait until it serves the new code.

    Args:
        api: Sends the requests, with the credentials of the deployer or of a user with its roles.
        environment: The environment to deploy to. Its function must exist.
        bundle: The new code.

    Raises:
        DeploymentError: The function does not serve the new code.
    """
    url = function_url(environment, bundle.folder)
    try:
        before = api.request("GET", url)
    except GoogleError as error:
        if error.status not in (403, 404):
            raise
        raise DeploymentError(
            f"{url.rpartition('/')[2]} does not exist in {environment.name}, or the deployer has "
            f"no role on it ({error}). First run `uv run just deploy {environment.name}`."
        ) from error
    source = {"bucket": environment["sources_bucket"], "object": f"{bundle.sha256}.zip"}
    _upload(api, bundle, **source)
    api.request(
        "PATCH",
        url,
        params={"updateMask": "buildConfig.source"},
        json={"buildConfig": {"source": {"storageSource": source}}},
    )
    _wait_until_served(api, url, _last_build(before))


def deployer_credentials() -> Credentials:
    """Return the application default credentials, or exchange the ID token of the CI job.

    Where the CI job only has an ID token, `WORKLOAD_IDENTITY_PROVIDER` is set, and workload
    identity federation exchanges the token for credentials of the deployer.

    Raises:
        DeploymentError: There are no credentials.
    """
    provider = os.environ.get("WORKLOAD_IDENTITY_PROVIDER")
    if not provider:
        return find_credentials()
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


class _IdToken(identity_pool.SubjectTokenSupplier):
    def get_subject_token(self, context: object, request: object) -> str:
        return os.environ["ID_TOKEN"]


def function_url(environment: Environment, folder: Path = CLOUD_FUNCTION) -> str:
    """Return the URL of a function in the Cloud Functions API.

    Args:
        environment: The environment of the function.
        folder: The folder of the function.
    """
    name = name_in_cloud(folder, environment["function_name"])
    return (
        f"https://cloudfunctions.googleapis.com/v2/projects/{environment['project_id']}/locations/"
        f"{environment['region']}/functions/{name}"
    )


def _upload(api: GoogleApi, bundle: Bundle, *, bucket: str, object: str) -> None:
    """Upload the bundle unless it exists. Its name contains its hash."""
    try:
        api.request(
            "POST",
            f"https://storage.googleapis.com/upload/storage/v1/b/{bucket}/o",
            params={"uploadType": "media", "name": object, "ifGenerationMatch": "0"},
            data=bundle.path.read_bytes(),
        )
    except GoogleError as error:
        if error.status != 412:  # Precondition Failed: the object exists
            raise


def _wait_until_served(api: GoogleApi, url: str, previous_build: str | None) -> None:
    """Wait until the function serves a new build.

    This does not poll the operation of the update, because operations belong to the project, where
    the deployer has no role. The function has the ID of the last deployed build.
    """
    deadline = time.monotonic() + _LONGEST_DEPLOYMENT
    while time.monotonic() < deadline:
        function = api.request("GET", url)
        match function.get("state"):
            case "ACTIVE" if _last_build(function) != previous_build:
                return
            case "FAILED" | "UNKNOWN":
                raise DeploymentError(f"The function serves no requests. {_problems(function)}")
            case "ACTIVE" if problems := _problems(function):
                raise DeploymentError(f"The previous version keeps serving requests. {problems}")
        time.sleep(_INTERVAL)
    raise DeploymentError(
        f"The deployment timed out after {_LONGEST_DEPLOYMENT / 60:.0f} minutes. The previous "
        "version keeps serving requests. See the history of Cloud Build."
    )


def _last_build(function: dict[str, Any]) -> str | None:
    """The last deployed build."""
    build: str | None = function.get("buildConfig", {}).get("build")
    return build


def _problems(function: dict[str, Any]) -> str:
    """The errors that Google Cloud reports for the function."""
    return " ".join(
        message.get("message", "")
        for message in function.get("stateMessages", [])
        if message.get("severity") == "ERROR"
    )


if __name__ == "__main__":
    sys.exit(main())
