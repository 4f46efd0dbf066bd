"""Brings new code into the function of an environment: `just deploy-function ENVIRONMENT`.

That is what continuous integration does. It needs no more than the deployer may do: to upload a
bundle, and to update this one function. While a new version is built, and if that fails, the old
one goes on serving.
"""

import os
import sys
import time
from contextlib import closing
from typing import Any

from deployment.bundle import Bundle, make_bundle
from deployment.environments import Environment, find_environment
from deployment.errors import DeploymentError
from deployment.google import SCOPES, GoogleApi, GoogleError, find_credentials
from google.auth import identity_pool
from google.auth.credentials import Credentials

_LONGEST_DEPLOYMENT = 20 * 60.0  # seconds; one takes about two minutes
_INTERVAL = 5.0  # seconds between two looks at the function


def main() -> int:
    """Deploy to the environment that the command line names.

    Returns:
        The exit status: 0, also where nothing may be deployed from here yet; 1 for a failure; 130
        if interrupted.
    """
    try:
        environment = find_environment(sys.argv[1])
        if os.environ.get("CI") and not environment.is_federated:
            print(
                f"Skipped: nothing may be deployed to {environment.name} from here, since "
                f"infra/environments/{environment.name}.tfvars does not say where this is. "
                "infra/README.md says how to change that."
            )
            return 0
        bundle = make_bundle()
        with closing(GoogleApi(deployer_credentials())) as api:
            deploy_function(api, environment, bundle)
    except DeploymentError as error:
        print(f"Not deployed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; a deployment that has begun goes on.", file=sys.stderr)
        return 130
    print(f"{environment['function_name']} in {environment.name} serves {bundle.sha256}")
    return 0


def deploy_function(api: GoogleApi, environment: Environment, bundle: Bundle) -> None:
    """Upload the bundle, let the function be built from it, and wait until that is served.

    Args:
        api: Sends the requests, as the deployer or somebody who may do as much.
        environment: Where to deploy to. Its function has to be there already.
        bundle: The new code.

    Raises:
        DeploymentError: The new code is not served.
    """
    url = function_url(environment)
    before = api.request("GET", url)
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
    """The deployer's credentials in continuous integration, or else those of whoever is logged in.

    Continuous integration has an identity token, which says where it runs. By workload identity
    federation, Google Cloud takes it for one of the deployer.

    Raises:
        DeploymentError: There are neither.
    """
    provider = os.environ.get("WORKLOAD_IDENTITY_PROVIDER")
    if not provider:
        return find_credentials()
    needed = ("ID_TOKEN", "DEPLOYER_SERVICE_ACCOUNT")
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise DeploymentError(
            f"WORKLOAD_IDENTITY_PROVIDER is set, but not {' and '.join(missing)}: infra/README.md "
            "says where they come from."
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


def function_url(environment: Environment) -> str:
    """Where Google Cloud describes the environment's function.

    Args:
        environment: Where the function is.
    """
    return (
        f"https://cloudfunctions.googleapis.com/v2/projects/{environment['project_id']}/locations/"
        f"{environment['region']}/functions/{environment['function_name']}"
    )


def _upload(api: GoogleApi, bundle: Bundle, *, bucket: str, object: str) -> None:
    """Upload the bundle, unless it is there: its name says what it holds."""
    try:
        api.request(
            "POST",
            f"https://storage.googleapis.com/upload/storage/v1/b/{bucket}/o",
            params={"uploadType": "media", "name": object, "ifGenerationMatch": "0"},
            data=bundle.path.read_bytes(),
        )
    except GoogleError as error:
        if error.status != 412:  # Precondition Failed: it exists
            raise


def _wait_until_served(api: GoogleApi, url: str, previous_build: str | None) -> None:
    """Wait for a new build to be served.

    The operation itself would say when it is done, but it belongs to the project, where the
    deployer has no rights; the function names the last build that was deployed.
    """
    deadline = time.monotonic() + _LONGEST_DEPLOYMENT
    while time.monotonic() < deadline:
        function = api.request("GET", url)
        match function.get("state"):
            case "ACTIVE" if _last_build(function) != previous_build:
                return
            case "FAILED" | "UNKNOWN":
                raise DeploymentError(f"The function is not served. {_problems(function)}")
            case "ACTIVE" if problems := _problems(function):
                raise DeploymentError(f"The previous version goes on serving. {problems}")
        time.sleep(_INTERVAL)
    raise DeploymentError(
        f"No new version was served within {_LONGEST_DEPLOYMENT / 60:.0f} minutes; the previous "
        "one goes on serving. The history of Cloud Build tells more."
    )


def _last_build(function: dict[str, Any]) -> str | None:
    """The build that the function was last deployed from."""
    build: str | None = function.get("buildConfig", {}).get("build")
    return build


def _problems(function: dict[str, Any]) -> str:
    """What Google Cloud says is wrong with the function."""
    return " ".join(
        message.get("message", "")
        for message in function.get("stateMessages", [])
        if message.get("severity") == "ERROR"
    )


if __name__ == "__main__":
    sys.exit(main())
