"""The settings of Dagster for an environment."""

import shutil
from io import StringIO

from deployment.environments import Environment
from deployment.project import ORCHESTRATOR, PROJECT
from deployment.targets import TARGETS
from dotenv import dotenv_values, set_key


def expected_settings(environment: Environment) -> dict[str, str]:
    """The orchestrator's settings for an environment, as far as they are known before it exists.

    Args:
        environment: The environment, deployed or not.
    """
    settings = {
        "GOOGLE_CLOUD_PROJECT": environment["project_id"],
        "GOOGLE_CLOUD_REGION": environment["region"],
        "IMPERSONATE_SERVICE_ACCOUNT": _orchestrator(environment),
        "LAKE_URI": f"gs://{environment['lake_bucket']}",
        "MESSAGES_BUCKET": environment["messages_bucket"],
    }
    for target in TARGETS:
        settings |= target.expected_settings(environment)
    return settings


def _orchestrator(environment: Environment) -> str:
    """The account to impersonate, if anyone may impersonate it."""
    if not environment.variables.get("orchestrator_users"):
        return ""
    return environment.account("orchestrator")


def write_settings(settings: str) -> None:
    """Set the settings in orchestrator/.env, all or none of them.

    Args:
        settings: A line `NAME=value` for each.
    """
    file = ORCHESTRATOR / ".env"
    draft = PROJECT / ".local" / "settings.env"  # which git ignores
    draft.parent.mkdir(exist_ok=True)
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    if file.exists():
        shutil.copy2(file, draft)
    for name, value in dotenv_values(stream=StringIO(settings)).items():
        set_key(draft, name, value or "", quote_mode="never")
    draft.replace(file)
