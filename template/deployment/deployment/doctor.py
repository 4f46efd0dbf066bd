"""Diagnoses the deployment, and suggests fixes: `just doctor`.

It uses the settings that Dagster would use: the environment, then orchestrator/.env, or
orchestrator/.env.example if there is no .env yet. It prints a line for each check: ok, skipped, or
a finding with a fix.
"""

import os
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployment.checks import Check, Diagnosis, finding, root_cause
from deployment.errors import DeploymentError
from deployment.google import (
    LOGIN,
    GoogleApi,
    GoogleError,
    disabled_apis,
    find_bucket,
    find_credentials,
    find_project,
)
from deployment.project import ORCHESTRATOR
from deployment.targets import CHECKS
from dotenv import dotenv_values
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport.requests import Request

_SETTINGS = ("GOOGLE_CLOUD_PROJECT", "LAKE_URI", "MESSAGES_BUCKET")
_OPTIONAL_SETTINGS = ("GOOGLE_CLOUD_REGION", "IMPERSONATE_SERVICE_ACCOUNT")


def main(environment: str | None = None) -> int:
    """Make all checks, and print a line for each.

    Args:
        environment: The environment in infra/environments whose settings were added to this
            process's environment variables, if any.

    Returns:
        The exit status: 0 if all checks succeeded, 1 if not, 130 if interrupted.
    """
    try:
        succeeded = run_checks(Doctor(environment).checks())
    except KeyboardInterrupt:
        return 130
    return 0 if succeeded else 1


def run_checks(checks: list[Check]) -> bool:
    """Make the checks in order, and print a line for each.

    Args:
        checks: The checks, each after the ones that it needs.

    Returns:
        True if all succeeded.
    """
    succeeded: set[str] = set()
    for check in checks:
        if missing := [name for name in check.needs if name not in succeeded]:
            print(f"skipped  {check.name}: needs the check {missing[0]!r}")
            continue
        try:
            print(f"ok       {check.name}: {check.run()}", flush=True)
            succeeded.add(check.name)
        except DeploymentError as error:
            print(f"FINDING  {check.name}: {error}", flush=True)
    return len(succeeded) == len(checks)


class Doctor:
    """All checks, and the results that later checks use.

    Args:
        environment: The environment in infra/environments that is checked, if it was named.
    """

    def __init__(self, environment: str | None = None) -> None:
        self._expected = expected()
        settings, source = find_settings()
        fixes: Mapping[str, str] = self._expected["fixes"]
        if environment:
            source = f"infra/environments/{environment}.tfvars"
            fixes = {name: fix.replace("ENVIRONMENT", environment) for name, fix in fixes.items()}
        region = settings.get("GOOGLE_CLOUD_REGION") or str(self._expected["region"])
        self._diagnosis = Diagnosis(settings, source, region, fixes)
        self._targets = [checks(self._diagnosis) for checks in CHECKS]

    def checks(self) -> list[Check]:
        """The checks, in the order in which a first deployment would fail."""
        return [
            Check("tools", self.tools),
            Check("settings", self.settings),
            Check("login", self.login),
            Check("project", self.project, ("settings", "login")),
            Check("APIs", self.apis, ("project",)),
            Check("roles", self.roles, ("project",)),
            Check("region", self.region, ("APIs",)),
            Check("buckets", self.buckets, ("project",)),
            *(check for target in self._targets for check in target.checks()),
        ]

    def tools(self) -> str:
        """Check that the programs for a deployment are installed.

        Raises:
            DeploymentError: One of them is not.
        """
        tools: Mapping[str, str] = self._expected["tools"]
        for tool, source in tools.items():
            if shutil.which(tool) is None:
                raise finding(f"{tool} is not installed.", source)
        return ", ".join(tools)

    def settings(self) -> str:
        """Check that all required settings are set.

        Raises:
            DeploymentError: One of them is not.
        """
        for name in _required_settings():
            if not self._diagnosis.settings.get(name):
                raise finding(
                    f"{self._diagnosis.source} does not set {name}.",
                    "see orchestrator/.env.example.",
                )
        return f"{self._diagnosis.source}, for {self._diagnosis.project}"

    def login(self) -> str:
        """Check that there are credentials, and that Google accepts them.

        Raises:
            DeploymentError: There are none, or Google rejects them.
        """
        credentials = find_credentials()
        try:
            credentials.refresh(Request())
        except TransportError as error:
            raise finding(
                f"Could not reach Google: {root_cause(error)}.", "check the network and its proxy."
            ) from error
        except GoogleAuthError as error:
            raise finding(f"Google rejects your login: {error}.", LOGIN) from error
        self._diagnosis.api = GoogleApi(credentials)
        return getattr(credentials, "service_account_email", None) or "a person's account"

    def project(self) -> str:
        """Check that the project exists and is visible to you.

        Raises:
            DeploymentError: It is not, or it is being deleted, or the request failed.
        """
        project = self._diagnosis.project
        try:
            found = find_project(self._diagnosis.api, project)
        except GoogleError as error:
            if error.status in (403, 404):
                raise finding(
                    f"{project} does not exist, or you may not see it, or its API is off: {error}",
                    "`gcloud projects list` lists your projects; `gcloud services enable "
                    f"cloudresourcemanager.googleapis.com --project={project}` turns the API on.",
                ) from error
            raise
        if found.get("lifecycleState") != "ACTIVE":
            raise finding(f"{project} is being deleted.", f"gcloud projects undelete {project}")
        self._project_number = found["projectNumber"]
        return f"{project}, number {self._project_number}"

    def apis(self) -> str:
        """Check that the APIs that the project needs are enabled.

        Raises:
            DeploymentError: Some are not, or the request failed.
        """
        parent, names = f"projects/{self._project_number}", self._expected["apis"]["names"]
        if missing := disabled_apis(self._diagnosis.api, parent, names):
            raise finding(
                f"Not enabled: {', '.join(missing)}.",
                f"gcloud services enable {' '.join(missing)} --project={self._diagnosis.project}",
            )
        return f"{len(names)} enabled"

    def roles(self) -> str:
        """Check that you have the permissions to deploy.

        Raises:
            DeploymentError: A role is missing, or the request failed.
        """
        project = self._diagnosis.project
        permissions: Mapping[str, str] = self._expected["permissions"]
        found = self._diagnosis.api.request(
            "POST",
            f"https://cloudresourcemanager.googleapis.com/v1/projects/{project}:testIamPermissions",
            json={"permissions": list(permissions)},
        )
        granted = found.get("permissions", [])
        if missing := sorted({role for name, role in permissions.items() if name not in granted}):
            raise finding(
                f"You lack roles to deploy: {', '.join(missing)}.",
                f"ask an administrator of the project {project} for them.",
            )
        return "you may deploy"

    def region(self) -> str:
        """Check that tasks can run in the region.

        Raises:
            DeploymentError: They cannot, or the request failed.
        """
        region = self._diagnosis.region
        for target in self._targets:
            found = self._diagnosis.api.request(
                "GET",
                f"{target.api}/projects/{self._diagnosis.project}/locations",
                params={"pageSize": "500"},
            )
            regions = sorted(location["locationId"] for location in found.get("locations", []))
            if region not in regions:
                raise finding(
                    f"{target.plural} do not run in the region {region}.",
                    f"use one of {', '.join(regions)}.",
                )
        return region

    def buckets(self) -> str:
        """Check that the buckets exist, in this project and in this region.

        Raises:
            DeploymentError: One of them does not, or the request failed.
        """
        names = [
            self._diagnosis.settings["LAKE_URI"].removeprefix("gs://"),
            self._diagnosis.settings["MESSAGES_BUCKET"],
        ]
        for name in names:
            self._check_bucket(name)
        return " and ".join(names)

    def _check_bucket(self, name: str) -> None:
        try:
            bucket = find_bucket(self._diagnosis.api, name)
        except GoogleError as error:
            if error.status == 404:
                problem = f"There is no bucket {name}."
                raise finding(problem, self._diagnosis.fixes["create"]) from error
            if error.status == 403:
                raise finding(
                    f"The bucket {name} has another owner, or you may not see it: {error}",
                    "choose another name: all of Google Cloud shares the names of buckets.",
                ) from error
            raise
        if str(bucket.get("projectNumber")) != self._project_number:
            raise finding(f"The bucket {name} belongs to another project.", "choose another name.")
        region = self._diagnosis.region
        if region not in _regions(bucket):
            raise finding(
                f"The bucket {name} is in {bucket['location'].lower()}, not in {region}.",
                "a bucket cannot be moved: choose another name, or deploy to its region.",
            )


def expected() -> dict[str, Any]:
    """What the doctor expects of this machine and of Google Cloud, from doctor.toml."""
    return tomllib.loads((Path(__file__).parent / "doctor.toml").read_text())


def find_settings() -> tuple[dict[str, str], str]:
    """The settings that Dagster would use, and the file with them."""
    name = ".env" if (ORCHESTRATOR / ".env").exists() else ".env.example"
    values = {**dotenv_values(ORCHESTRATOR / name), **os.environ}
    names = (*_required_settings(), *_optional_settings())
    settings = {key: value for key in names if (value := values.get(key))}
    return settings, f"orchestrator/{name}"


def _required_settings() -> list[str]:
    return [*_SETTINGS, *(name for target in CHECKS for name in target.required_settings())]


def _optional_settings() -> list[str]:
    return [*_OPTIONAL_SETTINGS, *(name for target in CHECKS for name in target.optional_settings)]


def _regions(bucket: Mapping[str, Any]) -> list[str]:
    """The region of a bucket, or both of a bucket in two regions."""
    placement = bucket.get("customPlacementConfig", {}).get("dataLocations")
    return [each.lower() for each in placement or [bucket["location"]]]


if __name__ == "__main__":
    sys.exit(main())
