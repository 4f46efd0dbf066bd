"""The environments to deploy to, as configured in infra/environments."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcl2
from deployment.answers import NAME_VARIABLE
from deployment.errors import DeploymentError
from deployment.project import PROJECT
from lark import UnexpectedInput

INFRA = PROJECT / "infra"
_ENVIRONMENTS = INFRA / "environments"
_PLAIN = hcl2.SerializationOptions(strip_string_quotes=True, with_comments=False)


@dataclass(frozen=True)
class Environment:
    """One environment.

    Attributes:
        name: Its name, and the name of its files.
        variables: The values of Terraform's variables, by name.
    """

    name: str
    variables: dict[str, Any]

    @property
    def variables_file(self) -> Path:
        """The file with the values of Terraform's variables."""
        return _variables_file(self.name)

    @property
    def backend_file(self) -> Path:
        """The file that says where Terraform stores the environment's state."""
        return _ENVIRONMENTS / f"{self.name}.gcs.tfbackend"

    @property
    def state_bucket(self) -> str:
        """The bucket for Terraform's state."""
        return _text(_parse(self.backend_file), "bucket", self.backend_file)

    @property
    def is_federated(self) -> bool:
        """True if continuous integration may deploy to the environment."""
        return bool(self.variables.get("git_repository"))

    def account(self, role: str) -> str:
        """The e-mail address of a service account, as infra/ names it.

        Args:
            role: What it is for, such as `orchestrator`.
        """
        prefix = self[NAME_VARIABLE][:17].removesuffix("-")
        return f"{prefix}-{role}@{self['project_id']}.iam.gserviceaccount.com"

    def __getitem__(self, variable: str) -> str:
        """The value of a variable.

        Args:
            variable: The name of one of Terraform's variables of type string.

        Raises:
            DeploymentError: The environment's file does not set it.
        """
        return _text(self.variables, variable, self.variables_file)


def find_environment(name: str) -> Environment:
    """Read the configuration of an environment.

    Args:
        name: The name of its `.tfvars` file in infra/environments, without the suffix.

    Raises:
        DeploymentError: There is no such file, or it could not be parsed.
    """
    file = _variables_file(name)
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in _ENVIRONMENTS.glob("*.tfvars")))
        raise DeploymentError(
            f"There is no environment {name!r} in infra/environments. There are: {known}."
        )
    return Environment(name, _parse(file))


def _variables_file(name: str) -> Path:
    return _ENVIRONMENTS / f"{name}.tfvars"


def _parse(file: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = hcl2.loads(file.read_text(), serialization_options=_PLAIN)
    except FileNotFoundError as error:
        raise DeploymentError(f"{file.relative_to(PROJECT)} is missing.") from error
    except UnexpectedInput as error:
        raise DeploymentError(
            f"Could not parse {file.relative_to(PROJECT)}: syntax error in line {error.line}."
        ) from error
    return values


def _text(values: dict[str, Any], name: str, file: Path) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise DeploymentError(f"{file.relative_to(PROJECT)} does not set {name}.")
    return value
