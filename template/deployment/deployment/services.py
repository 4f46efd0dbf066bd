"""Turns on the services of Google Cloud that a project needs: part of `just bootstrap`.

Terraform turns them on, too. But Google then needs minutes to create the accounts that its services
act as, and a first deployment that does not find them fails.
"""

import time
from typing import Any

from deployment.doctor import expected
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, GoogleError, disabled_apis

_API = "https://serviceusage.googleapis.com"
_INTERVAL = 2.0  # seconds between two requests for the state of an operation
_LONGEST_OPERATION = 10 * 60.0  # seconds; one takes less than a minute


def turn_on(api: GoogleApi, project: str) -> None:
    """Enable the APIs that the project needs, and create the accounts of Google's services.

    Args:
        api: Sends the requests, with the credentials of an administrator of the project.
        project: The ID of the project.

    Raises:
        DeploymentError: A request was rejected, or an operation failed.
    """
    parent, apis = f"projects/{project}", expected()["apis"]
    if names := disabled_apis(api, parent, apis["names"]):
        print(f"Enabling {', '.join(names)} ...", flush=True)
        url = f"{_API}/v1/{parent}/services:batchEnable"
        _finish(api, api.request("POST", url, json={"serviceIds": names}))
    for service in apis["with_accounts"]:
        print(f"Creating the account of {service} ...", flush=True)
        url = f"{_API}/v1beta1/{parent}/services/{service}:generateServiceIdentity"
        try:
            _finish(api, api.request("POST", url))
        except GoogleError as error:
            if error.status not in (400, 403):  # 400: the service makes its account itself
                raise
            print(
                f"It was not created ({error}). If the first deployment fails, ask an "
                "administrator to run the commands in infra/README.md.",
                flush=True,
            )


def _finish(api: GoogleApi, operation: dict[str, Any]) -> None:
    """Wait until an operation has ended."""
    deadline = time.monotonic() + _LONGEST_OPERATION
    while not operation.get("done"):
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"Google did not finish within {_LONGEST_OPERATION / 60:.0f} minutes. Run `just "
                "bootstrap` again."
            )
        time.sleep(_INTERVAL)
        operation = api.request("GET", f"{_API}/v1/{operation['name']}")
    if "error" in operation:
        raise DeploymentError(operation["error"].get("message", str(operation["error"])))
