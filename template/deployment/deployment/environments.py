"""The environments to deploy to: what their files in infra/environments say."""

import re
from dataclasses import dataclass
from pathlib import Path

from deployment.errors import DeploymentError

PROJECT = Path(__file__).resolve().parents[2]
INFRA = PROJECT / "infra"
_ENVIRONMENTS = INFRA / "environments"


@dataclass(frozen=True)
class Environment:
    """One environment.

    Attributes:
        name: Its name, and that of its files.
        variables: The variables of Terraform that are text, by name.
        is_federated: Whether continuous integration may deploy to it.
    """

    name: str
    variables: dict[str, str]
    is_federated: bool

    @property
    def variables_file(self) -> Path:
        """The values of Terraform's variables."""
        return _ENVIRONMENTS / f"{self.name}.tfvars"

    @property
    def backend_file(self) -> Path:
        """Where Terraform keeps the environment's state."""
        return _ENVIRONMENTS / f"{self.name}.gcs.tfbackend"

    def __getitem__(self, variable: str) -> str:
        """The value of a variable.

        Args:
            variable: The name of one of Terraform's variables that are text.

        Raises:
            DeploymentError: The environment's file does not set it.
        """
        try:
            return self.variables[variable]
        except KeyError:
            raise DeploymentError(
                f"{self.variables_file.relative_to(PROJECT)} does not set {variable}."
            ) from None


def find_environment(name: str) -> Environment:
    """The environment of this name.

    Args:
        name: That of its `.tfvars` file in infra/environments, without the ending.

    Raises:
        DeploymentError: There is none.
    """
    file = _ENVIRONMENTS / f"{name}.tfvars"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in _ENVIRONMENTS.glob("*.tfvars")))
        raise DeploymentError(f"There is no environment {name!r} in infra/environments: {known}.")
    text = file.read_text()
    return Environment(
        name=name,
        variables=read_text_values(text),
        is_federated=re.search(r"^\w+ *= *{ *id *=", text, re.MULTILINE) is not None,
    )


def read_text_values(text: str) -> dict[str, str]:
    """The values of a file of Terraform's that are plain text, one a line: `name = "value"`.

    Args:
        text: All that is in the file, which may hold values of other kinds, too.
    """
    return dict(re.findall(r'^(\w+) *= *"([^"\\$]*)"', text, re.MULTILINE))
