"""Builds the image of Dagster on this machine, with Docker: `just image`."""

import shutil
import subprocess
import sys
from zipfile import ZipFile

from deployment.bundle import make_bundle
from deployment.errors import DeploymentError
from deployment.project import ORCHESTRATOR, PROJECT

_DOCKER = "https://docs.docker.com/get-started/get-docker/"


def main() -> int:
    """Build the image, and print its name.

    Returns:
        The exit status: 0, 1 after an error, 130 if interrupted.
    """
    try:
        print(build())
    except DeploymentError as error:
        print(f"Could not build the image: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build() -> str:
    """Build the image from the bundle of orchestrator/, which is unpacked next to it.

    Returns:
        The name of the image, and its tag: the start of the hash of the bundle.

    Raises:
        DeploymentError: There is no bundle, or no Docker, or Docker could not build the image.
    """
    bundle = make_bundle(ORCHESTRATOR)
    folder = bundle.path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    with ZipFile(bundle.path) as archive:
        archive.extractall(folder)
    shown = folder.relative_to(PROJECT)
    if shutil.which("docker") is None:
        raise DeploymentError(
            f"Docker is missing. Install it ({_DOCKER}), or build {shown}/ with another program."
        )
    name = f"{ORCHESTRATOR.name}:{bundle.sha256[:12]}"
    version = f"--build-arg=VERSION={bundle.sha256}"
    built = subprocess.run(["docker", "build", f"--tag={name}", version, str(folder)], check=False)
    if built.returncode != 0:
        raise DeploymentError(f"Docker could not build {shown}/: see above.")
    return name


if __name__ == "__main__":
    sys.exit(main())
