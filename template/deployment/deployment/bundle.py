"""Builds the bundle of each folder with tasks, a zip file in build/: `just bundle`.

The bundle contains the folder, the package gcp_pipes, and a requirements.txt with the locked
version and the hashes of each dependency. The same sources result in the same bytes on every
machine, so its hash shows whether a deployment changes anything.

The image of Dagster is built from a bundle, too: that of orchestrator/.
"""

import hashlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from deployment.answers import ENTRY_POINT
from deployment.errors import DeploymentError
from deployment.project import ORCHESTRATOR, PROJECT, UV, task_folders

_PACKAGE = PROJECT / "packages" / "gcp-pipes" / "src"
_BUNDLES = PROJECT / "build"
_REQUIREMENTS = "requirements.txt"
_VERSION = "version.txt"  # differs between any two bundles

# Not needed to run anything, as all files whose names start with a dot.
_DEVELOPMENT = {"tests", "uv.lock", "__pycache__"}


@dataclass(frozen=True)
class _Contents:
    """What the bundle of a folder contains.

    Attributes:
        required: A file that the folder must have, and what it is for.
        left_out: The files and folders, by name, that do not belong into it.
        left_out_of_package: Those of gcp_pipes.
        dependencies: The options of `uv export` that choose the dependencies.
    """

    required: tuple[str, str]
    left_out: Set[str]
    left_out_of_package: Set[str]
    dependencies: tuple[str, ...]


_TASKS = _Contents(
    required=(ENTRY_POINT, "the entry point"),
    left_out={*_DEVELOPMENT, "pyproject.toml"},
    left_out_of_package={*_DEVELOPMENT, "orchestrator", "components"},  # only for Dagster
    dependencies=("--no-dev",),
)
_DAGSTER = _Contents(
    required=("Dockerfile", "from which the image is built"),
    left_out=_DEVELOPMENT,
    left_out_of_package=_DEVELOPMENT,
    dependencies=("--no-default-groups", "--group=production"),
)


@dataclass(frozen=True)
class Bundle:
    """The zip file with the sources and requirements of a folder.

    Attributes:
        folder: The folder.
        path: The zip file.
        sha256: The hash of the file, in hexadecimal.
    """

    folder: Path
    path: Path
    sha256: str

    @property
    def label(self) -> str:
        """The label of what runs it: the start of its hash. A label has at most 63 characters."""
        return self.sha256[:63]


def main() -> int:
    """Build the bundle of each folder with tasks, and print its path and hash.

    Returns:
        The exit status: 0, or 1 after an error.
    """
    try:
        bundles = make_bundles()
    except DeploymentError as error:
        print(f"Could not build the bundle: {error}", file=sys.stderr)
        return 1
    for bundle in bundles:
        print(f"{bundle.path.relative_to(PROJECT)}  sha256:{bundle.sha256}")
    return 0


def make_bundles() -> list[Bundle]:
    """Build the bundle of each folder with tasks, and delete those of former folders.

    Raises:
        DeploymentError: The sources or the lock file of a folder cannot be deployed.
    """
    bundles = [make_bundle(folder) for folder in task_folders()]
    kept = {_path(ORCHESTRATOR), *(bundle.path for bundle in bundles)}
    for former in set(_BUNDLES.glob("*.zip")) - kept:
        former.unlink()
    return bundles


def make_bundle(folder: Path) -> Bundle:
    """Build the bundle of a folder with tasks, or of orchestrator/.

    Args:
        folder: The folder.

    Raises:
        DeploymentError: Its sources or its lock file cannot be deployed.
    """
    belongs = _DAGSTER if folder == ORCHESTRATOR else _TASKS
    files = {
        path.relative_to(root).as_posix(): path
        for root, left_out in (
            (folder, belongs.left_out),
            (_PACKAGE, belongs.left_out_of_package),
        )
        for path in _source_files(root, left_out)
    }
    required, purpose = belongs.required
    if required not in files:
        raise DeploymentError(f"{folder.name}/{required}, {purpose}, is missing.")
    if _REQUIREMENTS in files:
        raise DeploymentError(
            f"{folder.name}/{_REQUIREMENTS} conflicts with the one that is generated from "
            "uv.lock. Delete it, and add its packages with `uv add`."
        )
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents[_REQUIREMENTS] = _export_requirements(folder, belongs.dependencies)
    contents[_VERSION] = _version({folder.name: b"", **contents})

    _BUNDLES.mkdir(exist_ok=True)
    bundle = _path(folder)
    with ZipFile(bundle, "w") as archive:
        for name, content in sorted(contents.items()):
            archive.writestr(_zip_entry(name), content)
    return Bundle(folder, bundle, hashlib.sha256(bundle.read_bytes()).hexdigest())


def deployed_bundle(resource: dict[str, Any]) -> str | None:
    """The label of the bundle that is deployed; None if there is none.

    Args:
        resource: What runs the bundle, as its API describes it.
    """
    deployed: str | None = resource.get("labels", {}).get("bundle")
    return deployed


def _path(folder: Path) -> Path:
    """Where the bundle of a folder is."""
    return _BUNDLES / f"{folder.name}.zip"


def _source_files(folder: Path, left_out: Set[str]) -> Iterator[Path]:
    """The files in a folder that belong into the bundle."""
    for path in folder.iterdir():
        if path.name in left_out or path.name.startswith("."):
            continue
        if path.is_symlink():
            raise DeploymentError(
                f"{path.relative_to(PROJECT)} is a symbolic link, whose target may differ on "
                "another machine. Replace it with the file."
            )
        if path.is_dir():
            yield from _source_files(path, left_out)
        else:
            yield path


def _export_requirements(folder: Path, dependencies: Sequence[str]) -> bytes:
    """The packages that a folder needs, with their locked versions and hashes."""
    lock = f"Run `uv lock --directory {folder.name}`, and commit the file."
    if not (folder / "uv.lock").exists():
        raise DeploymentError(f"{folder.name}/uv.lock is missing. {lock}")
    command = [UV, "export", "--locked", *dependencies, "--no-emit-project", "--no-emit-local"]
    exported = subprocess.run(
        [*command, "--no-header", "--no-annotate", "--format=requirements.txt"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    if exported.returncode != 0:
        raise DeploymentError(
            f"uv cannot export the requirements of {folder.name}. "
            f"{exported.stderr.decode().strip()} If uv.lock is out of date: {lock}"
        )
    return exported.stdout


def _version(contents: Mapping[str, bytes]) -> bytes:
    """Twelve hexadecimal digits that depend on all files."""
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return f"{digest.hexdigest()[:12]}\n".encode()


def _zip_entry(name: str) -> ZipInfo:
    """An entry without time and owner, and uncompressed: those differ between machines."""
    entry = ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix, which knows the permissions in the next line
    entry.external_attr = 0o644 << 16
    return entry


if __name__ == "__main__":
    sys.exit(main())
