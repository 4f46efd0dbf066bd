"""Builds the image of Dagster, in the repository of images that infra/ creates."""

import sys

from deployment.advice import explained
from deployment.bundle import make_bundle
from deployment.deployer import deployer_api, run_deployment
from deployment.environments import Environment
from deployment.google import GoogleApi, GoogleError
from deployment.image import Image, build_image, find_image
from deployment.project import ORCHESTRATOR
from deployment.sources import upload_bundle

_INTERVAL = 5.0  # seconds between two requests for the state of a build
_BUILD_TIMEOUT = 20 * 60.0  # seconds. A build takes about three minutes


def push_image(environment: Environment) -> None:
    """Build the image, unless it exists, and print its address.

    Args:
        environment: The environment.

    Raises:
        DeploymentError: The image could not be built.
    """
    with deployer_api() as api:
        print(orchestrator_image(api, environment), flush=True)


def orchestrator_image(
    api: GoogleApi, environment: Environment, interval: float = _INTERVAL
) -> str:
    """Build the image, unless the repository has one of these sources.

    Args:
        api: Sends the requests, with the credentials of the deployer or of a user with its roles.
        environment: The environment.
        interval: How long to wait between two requests for the state of the build, in seconds.

    Returns:
        The address of the image, with its digest: it always is the same image.

    Raises:
        DeploymentError: The image could not be built.
    """
    bundle = make_bundle(ORCHESTRATOR)
    image = Image.of(environment, ORCHESTRATOR.name, bundle)
    try:
        if address := find_image(api, environment, image):
            return address
        source = {"bucket": environment["sources_bucket"], "object": f"{bundle.sha256}.zip"}
        upload_bundle(api, bundle, **source)
        return build_image(api, environment, image, source, interval, _BUILD_TIMEOUT)
    except GoogleError as error:
        raise explained(error, "repository of images", environment) from error


if __name__ == "__main__":
    sys.exit(run_deployment(push_image))
