"""Builds images by Cloud Build, from bundles: nothing is built on this machine."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployment.answers import NAME_VARIABLE
from deployment.bundle import Bundle
from deployment.environments import Environment
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, GoogleError

_API = "https://cloudbuild.googleapis.com/v1"
_REGISTRY = "https://artifactregistry.googleapis.com/v1"
_RUNNING = ("STATUS_UNKNOWN", "PENDING", "QUEUED", "WORKING")


@dataclass(frozen=True)
class Image:
    """An image in Artifact Registry.

    Attributes:
        name: Its name, without a tag.
        version: Its tag: the hash of the bundle that it is built from.
    """

    name: str
    version: str

    @classmethod
    def of(cls, environment: Environment, name: str, bundle: Bundle) -> "Image":
        """The image of a bundle, in the repository of images that infra/ creates.

        Args:
            environment: The environment.
            name: The name of the image in the repository.
            bundle: The bundle.
        """
        host = f"{environment['region']}-docker.pkg.dev"
        repository = f"{environment['project_id']}/{environment[NAME_VARIABLE]}"
        return cls(f"{host}/{repository}/{name}", bundle.sha256)


def find_image(api: GoogleApi, environment: Environment, image: Image) -> str | None:
    """Look for an image in its repository.

    Args:
        api: Sends the request.
        environment: The environment.
        image: The image.

    Returns:
        The address of the image, with its digest; None if it is not built yet.

    Raises:
        GoogleError: Google rejected the request.
    """
    project, region = environment["project_id"], environment["region"]
    repository = f"projects/{project}/locations/{region}/repositories/{environment[NAME_VARIABLE]}"
    package = image.name.rsplit("/", 1)[1]
    url = f"{_REGISTRY}/{repository}/packages/{package}/tags/{image.version}"
    try:
        tag = api.request("GET", url)
    except GoogleError as error:
        if error.status == 404:
            return None
        raise
    return f"{image.name}@{tag['version'].rsplit('/', 1)[1]}"


def build_image(
    api: GoogleApi,
    environment: Environment,
    image: Image,
    source: Mapping[str, str],
    interval: float,
    timeout: float,
) -> str:
    """Build an image from the Dockerfile in a bundle, as the account `build`, and wait for it.

    Args:
        api: Sends the requests.
        environment: The environment.
        image: The image.
        source: The bucket and the object with the bundle.
        interval: How long to wait between two requests for the state of the build, in seconds.
        timeout: How long to wait for the build, in seconds.

    Returns:
        The address of the image, with its digest: it always is the same image.

    Raises:
        DeploymentError: The build failed, or has not ended in time.
        GoogleError: Google rejected a request.
    """
    project = environment["project_id"]
    region = environment.variables.get("build_region") or environment["region"]
    tagged = f"{image.name}:{image.version}"
    options = [f"--tag={tagged}", f"--build-arg=VERSION={image.version}"]
    build = _start(
        api,
        f"{_API}/projects/{project}/locations/{region}/builds",
        {
            "source": {"storageSource": dict(source)},
            "steps": [{"name": "gcr.io/cloud-builders/docker", "args": ["build", *options, "."]}],
            "images": [tagged],
            "serviceAccount": f"projects/{project}/serviceAccounts/{environment.account('build')}",
            "options": {"logging": _logging(environment)},
            "timeout": f"{timeout:.0f}s",
        },
    )
    build = _wait(api, build, interval, timeout)
    if build["status"] != "SUCCESS":
        detail = build.get("statusDetail") or build.get("failureInfo", {}).get("detail") or ""
        raise DeploymentError(
            f"The build of the image ended with {build['status']}. {detail} See its log: "
            f"{build.get('logUrl')}. What is deployed keeps the image that it has."
        )
    return f"{image.name}@{build['results']['images'][0]['digest']}"


def _start(api: GoogleApi, url: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Start a build; return its description."""
    try:
        operation = api.request("POST", url, json=request)
    except GoogleError as error:
        if error.status != 400 or "region" not in str(error):
            raise
        raise DeploymentError(
            f"{error} Set `build_region` in infra/environments to a region where this project may "
            "build, such as europe-west1; see infra/README.md."
        ) from error
    build: dict[str, Any] = operation["metadata"]["build"]
    return build


def _wait(api: GoogleApi, build: dict[str, Any], interval: float, timeout: float) -> dict[str, Any]:
    """The build, when it has ended."""
    deadline = time.monotonic() + timeout
    while build["status"] in _RUNNING:
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"The build of the image did not end within {timeout / 60:.0f} minutes. See its "
                f"log: {build.get('logUrl')}. Then deploy again."
            )
        time.sleep(interval)
        try:
            build = api.request("GET", f"{_API}/{build['name']}")
        except GoogleError as error:
            if not error.is_transient:
                raise
    return build


def _logging(environment: Environment) -> str:
    """Where the log of the build goes: with the variable `build_logs` off, nowhere."""
    return "CLOUD_LOGGING_ONLY" if environment.variables.get("build_logs", True) else "NONE"
