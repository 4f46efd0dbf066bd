"""Updates the code of a function, and waits until the function serves it.

The old version keeps serving requests until the new one is built. If the build fails, it stays.
"""

import time
from dataclasses import dataclass
from typing import Any

from deployment.advice import explained
from deployment.bundle import Bundle, deployed_bundle
from deployment.environments import Environment
from deployment.errors import DeploymentError
from deployment.function_target import FUNCTIONS
from deployment.google import GoogleApi, GoogleError
from deployment.sources import upload_bundle


@dataclass(frozen=True)
class Waits:
    """How long a deployment waits, in seconds.

    Attributes:
        interval: Between two requests for its state.
        start: Until the state is that of this deployment. Before, Google may still show the state
            and the errors of the previous one.
        same_build: For a new build, if there may be none because the code is the same as before.
            After that, an active function without errors counts as updated.
        longest: Until the deployment times out. One takes about two minutes.
    """

    interval: float = 5.0
    start: float = 60.0
    same_build: float = 180.0
    longest: float = 20 * 60.0


_WAITS = Waits()


def update_function(
    api: GoogleApi, environment: Environment, bundle: Bundle, waits: Waits = _WAITS
) -> bool:
    """Upload the bundle, update the function, and wait until it serves the new code.

    Args:
        api: Sends the requests, with the credentials of the deployer or of a user with its roles.
        environment: The environment to deploy to. Its function must exist.
        bundle: The new code.
        waits: How long to wait.

    Returns:
        True if the function was updated; False if it already serves the bundle.

    Raises:
        DeploymentError: The function does not serve the new code.
    """
    try:
        return _update(api, environment, bundle, waits)
    except GoogleError as error:
        raise explained(error, FUNCTIONS.kind, environment) from error


def _update(api: GoogleApi, environment: Environment, bundle: Bundle, waits: Waits) -> bool:
    url = FUNCTIONS.url(environment, bundle.folder)
    before = api.request("GET", url)
    if _serves(before, bundle):
        return False
    source = {"bucket": environment["sources_bucket"], "object": f"{bundle.sha256}.zip"}
    upload_bundle(api, bundle, **source)
    operation = _start(api, url, before, bundle, source)
    after = _Deployment(api, url, before, bundle, operation, waits).wait()
    if deployed_bundle(after) not in (None, bundle.label):
        raise DeploymentError(
            "Another deployment has replaced this one. Deploy again, when no other one is running."
        )
    return True


def _serves(function: dict[str, Any], bundle: Bundle) -> bool:
    """True if the function serves the bundle. After a failed build it has errors."""
    is_healthy = function.get("state") == "ACTIVE" and not _problems(function)
    return is_healthy and deployed_bundle(function) == bundle.label


def _start(
    api: GoogleApi, url: str, before: dict[str, Any], bundle: Bundle, source: dict[str, str]
) -> str | None:
    """Start the update.

    Returns:
        The name of its operation, or None if it is unknown.
    """
    build_variables = before.get("buildConfig", {}).get("environmentVariables", {})
    try:
        operation = api.request(
            "PATCH",
            url,
            params={"updateMask": "buildConfig.source,buildConfig.environmentVariables,labels"},
            json={
                "buildConfig": {
                    "source": {"storageSource": source},
                    # Terraform reads it: see infra/function.tf.
                    "environmentVariables": {**build_variables, "BUNDLE": bundle.sha256},
                },
                "labels": {**before.get("labels", {}), "bundle": bundle.label},
            },
        )
    except GoogleError as error:
        if error.is_transient:
            raise DeploymentError(
                f"{error} It is unknown whether the update has started. Deploy again in a few "
                "minutes."
            ) from error
        if error.status != 409:
            raise
        if error.was_retried:  # a request without a response has started the update
            return None
        raise DeploymentError(
            "Another deployment of the function is running. When it has ended, deploy again."
        ) from error
    return operation.get("name")


class _Deployment:
    """A deployment that has started.

    Args:
        api: Sends the requests.
        url: The URL of the function.
        before: The function as it was before the update.
        bundle: The new code.
        operation: The name of the operation of the update, if it is known.
        waits: How long to wait.
    """

    def __init__(
        self,
        api: GoogleApi,
        url: str,
        before: dict[str, Any],
        bundle: Bundle,
        operation: str | None,
        waits: Waits,
    ) -> None:
        self._api = api
        self._url = url
        self._before = before
        self._operation = operation
        self._waits = waits
        # Other code has another build. Without a label, it is unknown what was deployed before.
        self._may_have_same_build = deployed_bundle(before) in (None, bundle.label)
        self._started = time.monotonic()
        self._was_seen = False  # in the state DEPLOYING

    def wait(self) -> dict[str, Any]:
        """Wait until the function serves the new code, and return the function.

        Raises:
            DeploymentError: It does not serve the new code.
        """
        while self._elapsed() < self._waits.longest:
            time.sleep(self._waits.interval)
            try:
                operation = self._read_operation()
                if operation is not None and not operation.get("done"):
                    continue
                function = self._api.request("GET", self._url)
            except GoogleError as error:
                if error.is_transient:
                    continue  # the deployment continues, too
                raise
            if self._is_served(function, operation):
                return function
        raise DeploymentError(
            f"The deployment did not end within {self._waits.longest / 60:.0f} minutes. See the "
            "history of Cloud Build, and deploy again."
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _read_operation(self) -> dict[str, Any] | None:
        """The operation of the update, or None if the deployer may not read it.

        Operations belong to the project, where the deployer has no role.
        """
        if self._operation is None:
            return None
        try:
            operation = self._api.request("GET", f"{FUNCTIONS.api}/{self._operation}")
        except GoogleError as error:
            if error.status not in (403, 404):
                raise
            operation = {}
        if operation.get("name") == self._operation:
            return operation
        self._operation = None
        return None

    def _is_served(self, function: dict[str, Any], operation: dict[str, Any] | None) -> bool:
        """Whether the function serves the new code.

        Raises:
            DeploymentError: The deployment has failed.
        """
        state = function.get("state")
        self._was_seen = self._was_seen or state == "DEPLOYING"
        has_new_build = _last_build(function) != _last_build(self._before)
        has_failed = operation is not None and "error" in operation
        problems = _problems(function, operation)
        match state:
            case "ACTIVE" if has_new_build and not has_failed:
                return True
            case "ACTIVE" if problems and self._is_current(function, operation):
                raise DeploymentError(
                    f"The previous version keeps serving requests. {problems} Fix the function, "
                    "and deploy again."
                )
            case "ACTIVE" if not problems and self._may_have_same_build:
                is_over = operation is not None or self._was_seen
                return is_over or self._elapsed() >= self._waits.same_build
            case "FAILED" | "UNKNOWN" if self._is_current(function, operation):
                raise DeploymentError(
                    f"The function serves no requests. {problems} See its logs. To go back, deploy "
                    "an older commit."
                )
        return False

    def _is_current(self, function: dict[str, Any], operation: dict[str, Any] | None) -> bool:
        """Whether the state and the errors are those of this deployment.

        Right after the request, Google may still show those of the previous one, also with a new
        time of update.
        """
        return (
            operation is not None
            or self._was_seen
            or _condition(function) != _condition(self._before)
            or self._elapsed() >= self._waits.start
        )


def _condition(function: dict[str, Any]) -> tuple[str | None, str]:
    """The state and the errors of the function."""
    return function.get("state"), _problems(function)


def _last_build(function: dict[str, Any]) -> str | None:
    """The last build that was deployed."""
    build: str | None = function.get("buildConfig", {}).get("build")
    return build


def _problems(function: dict[str, Any], operation: dict[str, Any] | None = None) -> str:
    """The errors that Google Cloud reports for the function and for the operation of its update."""
    messages = [
        message.get("message", "")
        for message in function.get("stateMessages", [])
        if message.get("severity") == "ERROR"
    ]
    failure = (operation or {}).get("error", {}).get("message", "")
    return " ".join(dict.fromkeys([*messages, *filter(None, [failure])]))
