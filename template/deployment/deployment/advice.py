"""What to do after Google has rejected a request of a deployment."""

from deployment.environments import Environment
from deployment.errors import DeploymentError
from deployment.google import GoogleError


def explained(error: GoogleError, what: str, environment: Environment) -> DeploymentError:
    """The error of a deployment, with its reason and what to do.

    Args:
        error: The error of the request.
        what: What is deployed: the kind of its target.
        environment: The environment that is deployed to.
    """
    reason = str(error) if str(error).endswith((".", "?")) else f"{error}."
    return DeploymentError(f"{reason} {_advice(error, what, environment)}")


def _advice(error: GoogleError, what: str, environment: Environment) -> str:
    if error.status in (403, 404):
        return (
            f"The {what} or its bucket for sources does not exist, or the deployer lacks a role. "
            f"Run `uv run just deploy {environment.name}`. If that was just done, deploy again in "
            "a few minutes, when its roles are effective."
        )
    return "Deploy again. If it fails again, see infra/README.md."
