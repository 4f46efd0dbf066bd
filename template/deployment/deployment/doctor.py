"""Looks for all that keeps a function from being deployed and called, in order: `just doctor`.

It looks at what Dagster would use: the environment, then orchestrator/.env, then, where there is
none yet, orchestrator/.env.example. Each line says what was found, or why nothing was looked for;
each fault comes with its fix.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from deployment.errors import DeploymentError
from deployment.google import LOGIN, GoogleApi, GoogleError, find_credentials
from dotenv import dotenv_values
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

PROJECT = Path(__file__).resolve().parents[2]
ORCHESTRATOR = PROJECT / "orchestrator"

_SETTINGS = ("GOOGLE_CLOUD_PROJECT", "LAKE_URI", "MESSAGES_BUCKET", "FUNCTION_URL")
_TIMEOUT = 30.0  # seconds without an answer
_ROUND_TRIP_TIMEOUT = 600.0  # seconds; an instance has to start, and an environment to be made
_UV = os.environ.get("UV", "uv")  # `uv run` tells its children which uv it is


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        name: What to call it.
        look: Looks at it, and says what was found; raises `DeploymentError` if that is wrong.
        needs: The names of the checks without whose success there is nothing to look at.
    """

    name: str
    look: Callable[[], str]
    needs: tuple[str, ...] = ()


def main() -> int:
    """Make all checks, and print a line for each.

    Returns:
        The exit status: 0 if nothing is wrong, 1 if something is, 130 if interrupted.
    """
    try:
        succeeded = run_checks(Doctor().checks())
    except KeyboardInterrupt:
        return 130
    return 0 if succeeded else 1


def run_checks(checks: list[Check]) -> bool:
    """Make the checks in order, and print a line for each.

    Args:
        checks: The checks, each after those that it needs.

    Returns:
        Whether all have succeeded.
    """
    succeeded: set[str] = set()
    for check in checks:
        if missing := [name for name in check.needs if name not in succeeded]:
            print(f"skipped  {check.name}: there is nothing to look at without {missing[0]}")
            continue
        try:
            print(f"ok       {check.name}: {check.look()}", flush=True)
            succeeded.add(check.name)
        except DeploymentError as error:
            print(f"FAULT    {check.name}: {error}", flush=True)
    return len(succeeded) == len(checks)


class Doctor:
    """All checks, and what they have found out for those that follow."""

    def __init__(self) -> None:
        self._expected = tomllib.loads((Path(__file__).parent / "doctor.toml").read_text())
        self._region = os.environ.get("GOOGLE_CLOUD_REGION") or str(self._expected["region"])
        self._make = str(self._expected["make"])
        self._settings, self._source = find_settings()

    def checks(self) -> list[Check]:
        """The checks, in the order in which a first deployment trips over their subjects."""
        return [
            Check("tools", self.tools),
            Check("settings", self.settings),
            Check("login", self.login),
            Check("project", self.project, ("settings", "login")),
            Check("APIs", self.apis, ("project",)),
            Check("roles", self.roles, ("project",)),
            Check("region", self.region, ("APIs",)),
            Check("buckets", self.buckets, ("project",)),
            Check("function URL", self.function_url, ("settings",)),
            Check("token", self.token, ("function URL", "login")),
            Check("messages", self.messages, ("token",)),
        ]

    def tools(self) -> str:
        """The programs that a deployment takes are installed.

        Raises:
            DeploymentError: One of them is not.
        """
        tools: Mapping[str, str] = self._expected["tools"]
        for tool, source in tools.items():
            if shutil.which(tool) is None:
                raise fault(f"{tool} is not installed.", source)
        return ", ".join(tools)

    def settings(self) -> str:
        """The settings are there.

        Raises:
            DeploymentError: One of them is not.
        """
        for name in _SETTINGS:
            if not self._settings.get(name):
                raise fault(
                    f"{self._source} does not set {name}.", "orchestrator/.env.example shows how."
                )
        return f"{self._source}, for {self._settings['GOOGLE_CLOUD_PROJECT']}"

    def login(self) -> str:
        """Somebody is logged in, and Google still accepts it.

        Raises:
            DeploymentError: Nobody is, or Google does not.
        """
        credentials = find_credentials()
        try:
            credentials.refresh(Request())
        except GoogleAuthError as error:
            raise fault(f"The login is no longer good: {error}.", LOGIN) from error
        self._api = GoogleApi(credentials)
        return getattr(credentials, "service_account_email", None) or "as a person"

    def project(self) -> str:
        """The project exists, for whoever is logged in.

        Raises:
            DeploymentError: It does not, or it is being deleted, or it could not be looked at.
        """
        project = self._settings["GOOGLE_CLOUD_PROJECT"]
        url = f"https://cloudresourcemanager.googleapis.com/v1/projects/{project}"
        try:
            found = self._api.request("GET", url)
        except GoogleError as error:
            if error.status in (403, 404):
                raise fault(
                    f"{project} is no project that you may see, or its API is off: {error}",
                    "`gcloud projects list` shows which there are; `gcloud services enable "
                    f"cloudresourcemanager.googleapis.com --project={project}` turns the API on.",
                ) from error
            raise
        if found.get("lifecycleState") != "ACTIVE":
            raise fault(f"{project} is being deleted.", f"gcloud projects undelete {project}")
        self._project_number = found["projectNumber"]
        return f"{project}, number {self._project_number}"

    def apis(self) -> str:
        """The services that a function takes are enabled.

        Raises:
            DeploymentError: Some are not, or Google Cloud could not be asked.
        """
        names: list[str] = self._expected["apis"]["names"]
        parent = f"projects/{self._project_number}"
        found = self._api.request(
            "GET",
            f"https://serviceusage.googleapis.com/v1/{parent}/services:batchGet",
            params={"names": [f"{parent}/services/{name}" for name in names]},
        )
        enabled = {
            service["config"]["name"]
            for service in found.get("services", [])
            if service.get("state") == "ENABLED"
        }
        if missing := [name for name in names if name not in enabled]:
            raise fault(
                f"Not enabled: {', '.join(missing)}.",
                f"gcloud services enable {' '.join(missing)} "
                f"--project={self._settings['GOOGLE_CLOUD_PROJECT']}",
            )
        return f"{len(names)} enabled"

    def roles(self) -> str:
        """Whoever is logged in may deploy.

        Raises:
            DeploymentError: A role is lacking, or Google Cloud could not be asked.
        """
        project = self._settings["GOOGLE_CLOUD_PROJECT"]
        permissions: Mapping[str, str] = self._expected["permissions"]
        found = self._api.request(
            "POST",
            f"https://cloudresourcemanager.googleapis.com/v1/projects/{project}:testIamPermissions",
            json={"permissions": list(permissions)},
        )
        granted = found.get("permissions", [])
        if missing := sorted({role for name, role in permissions.items() if name not in granted}):
            raise fault(
                f"To deploy, you lack {', '.join(missing)}.",
                f"somebody who may grant them does, on the project {project}.",
            )
        return "you may deploy"

    def region(self) -> str:
        """The region is one where functions can run.

        Raises:
            DeploymentError: It is not, or Google Cloud could not be asked.
        """
        project = self._settings["GOOGLE_CLOUD_PROJECT"]
        found = self._api.request(
            "GET",
            f"https://cloudfunctions.googleapis.com/v2/projects/{project}/locations",
            params={"pageSize": "500"},
        )
        regions = sorted(location["locationId"] for location in found.get("locations", []))
        if self._region not in regions:
            raise fault(
                f"{self._region} is no region of Cloud Run functions.",
                f"one of {', '.join(regions)}.",
            )
        return self._region

    def buckets(self) -> str:
        """The buckets exist, in this project and in this region.

        Raises:
            DeploymentError: One of them does not, is elsewhere, or could not be looked at.
        """
        names = [
            self._settings["LAKE_URI"].removeprefix("gs://"),
            self._settings["MESSAGES_BUCKET"],
        ]
        for name in names:
            self._look_at_bucket(name)
        return " and ".join(names)

    def _look_at_bucket(self, name: str) -> None:
        url = f"https://storage.googleapis.com/storage/v1/b/{name}"
        try:
            bucket = self._api.request("GET", url)
        except GoogleError as error:
            if error.status == 404:
                raise fault(f"There is no bucket {name}.", self._make) from error
            if error.status == 403:
                raise fault(
                    f"The bucket {name} belongs to somebody else, or you may not see it: {error}",
                    "buckets' names are taken once in the whole world; choose another one.",
                ) from error
            raise
        if str(bucket.get("projectNumber")) != self._project_number:
            raise fault(f"The bucket {name} belongs to another project.", "choose another name.")
        if bucket["location"].lower() != self._region:
            raise fault(
                f"The bucket {name} is in {bucket['location'].lower()}, not in {self._region}.",
                "a bucket cannot be moved: choose another name, or its region for the function.",
            )

    def function_url(self) -> str:
        """Something answers at the function's URL, and only those whom it knows.

        Raises:
            DeploymentError: Nothing answers, or it answers strangers, too.
        """
        url = self._settings["FUNCTION_URL"]
        try:
            status = requests.get(url, timeout=_TIMEOUT, allow_redirects=False).status_code
        except requests.RequestException as error:
            problem = f"{url} could not be reached: {_innermost(error)}."
            raise fault(problem, "is FUNCTION_URL right?") from error
        if status == 404:
            raise fault(f"There is no function at {url}.", self._make)
        if status not in (401, 403):
            raise fault(
                f"{url} answered {status} to somebody without a token, instead of 401 or 403.",
                "take allUsers and allAuthenticatedUsers from those who may invoke it.",
            )
        return f"{url} refuses strangers"

    def token(self) -> str:
        """Dagster gets an identity token for the function.

        Raises:
            DeploymentError: It does not, or Dagster could not be asked.
        """
        self._report = self._ping()
        if problem := self._report["token"]:
            raise fault(problem, "orchestrator/.env, or a login as Dagster's account.")
        return "Dagster gets one for the function"

    def messages(self) -> str:
        """A call comes back as messages.

        Raises:
            DeploymentError: The call failed, or its messages did not come back.
        """
        if problem := self._report["round_trip"]:
            reason = problem.partition("\n\n")[0]  # what follows is the function's own traceback
            raise fault(reason, "README.md has a table of the usual reasons.")
        return "the function was called, and its messages came back"

    def _ping(self) -> dict[str, Any]:
        package = tomllib.loads((ORCHESTRATOR / "pyproject.toml").read_text())
        root_module = package["tool"]["dg"]["project"]["root_module"]
        try:
            done = subprocess.run(
                [_UV, "run", "python", "-m", "local_cloud.ping", root_module],
                cwd=ORCHESTRATOR,
                env={**os.environ, **self._settings},
                capture_output=True,
                text=True,
                timeout=_ROUND_TRIP_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            problem = f"Dagster was not done after {_ROUND_TRIP_TIMEOUT:.0f} s."
            raise fault(problem, "look at the function's logs.") from error
        if done.returncode != 0:
            last_line = done.stderr.strip().rpartition("\n")[2]
            raise fault(f"Dagster could not be asked: {last_line}.", "uv run just check")
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report


def fault(problem: str, fix: str) -> DeploymentError:
    """What is wrong, and how to mend it.

    Args:
        problem: What is wrong: a sentence, with its full stop.
        fix: How to mend it: a command, or what else is to follow `Fix:`.
    """
    return DeploymentError(f"{problem} Fix: {fix}")


def find_settings() -> tuple[dict[str, str], str]:
    """The settings that Dagster would use, and where they were found."""
    name = ".env" if (ORCHESTRATOR / ".env").exists() else ".env.example"
    values = {**dotenv_values(ORCHESTRATOR / name), **os.environ}
    settings = {key: value for key in _SETTINGS if (value := values.get(key))}
    optional = ("FUNCTION_AUDIENCE", "FUNCTION_TIMEOUT", "IMPERSONATE_SERVICE_ACCOUNT")
    settings |= {key: value for key in optional if (value := values.get(key))}
    return settings, f"orchestrator/{name}"


def _innermost(error: BaseException) -> BaseException:
    """What an error began with."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


if __name__ == "__main__":
    sys.exit(main())
