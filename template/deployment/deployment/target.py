"""What deployments know of the resources that run the tasks in an environment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deployment.environments import Environment
from deployment.project import name_in_cloud


@dataclass(frozen=True)
class Target:
    """A kind of resource, each of which runs the tasks in a folder.

    Attributes:
        kind: What to call a resource. Its variable in infra/environments is named after it.
        api: The URL of its API.
        verb: What a resource does with its code, such as `runs`.
        replacement: A sentence that says when `just deploy` replaces other code.
        find_folders: Finds the folders whose tasks it runs.
        expected_settings: The settings of Dagster for it, as far as they are known before the
            environment exists.
        transient_errors: Why a first deployment may fail for some minutes, by a pattern for
            Terraform's error: the rest of a sentence that starts with "because".
    """

    kind: str
    api: str
    verb: str
    replacement: str
    find_folders: Callable[[], list[Path]]
    expected_settings: Callable[[Environment], dict[str, str]]
    transient_errors: Mapping[str, str] = field(default_factory=dict)

    def name(self, environment: Environment, folder: Path) -> str:
        """The name of a resource.

        Args:
            environment: The environment of the resource.
            folder: The folder whose tasks it runs.

        Raises:
            DeploymentError: The environment's file does not set the name of the first one.
        """
        return name_in_cloud(folder, environment[f"{self.kind}_name"])

    def url(self, environment: Environment, folder: Path) -> str:
        """The URL of a resource in its API.

        Args:
            environment: The environment of the resource.
            folder: The folder whose tasks it runs.

        Raises:
            DeploymentError: The environment's file lacks a variable.
        """
        project, region = environment["project_id"], environment["region"]
        name = self.name(environment, folder)
        return f"{self.api}/projects/{project}/locations/{region}/{self.kind}s/{name}"
