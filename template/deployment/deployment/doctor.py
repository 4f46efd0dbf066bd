"""Diagnoses the deployment, and suggests fixes: `just doctor`.

It uses the settings that Dagster would use: the environment, then orchestrator/.env, or
orchestrator/.env.example if there is no .env yet. It prints a line for each check: ok, skipped, or
a finding with a fix. A line that starts with "waiting" says what it waits for.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
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
from deployment.project import ORCHESTRATOR, UV, function_folders, url_variable
from dotenv import dotenv_values
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport.requests import Request

_SETTINGS = ("GOOGLE_CLOUD_PROJECT", "LAKE_URI", "MESSAGES_BUCKET")
_OPTIONAL_SETTINGS = (
    "FUNCTION_AUDIENCE",
    "FUNCTION_TIMEOUT",
    "GOOGLE_CLOUD_REGION",
    "IMPERSONATE_SERVICE_ACCOUNT",
)
_TIMEOUT = 30.0  # seconds without a response
_ROUND_TRIP_TIMEOUT = 600.0  # seconds, to install the environment and to start an instance

# New roles are effective after minutes.
_NEW = timedelta(minutes=10)
_WAIT_FOR_ROLES = 120.0  # seconds
_INTERVAL = 10.0  # seconds between two calls


@dataclass(frozen=True)
class Check:
    """One check of the doctor.

    Attributes:
        name: The name to print.
        run: Makes the check, and returns the result to print. Raises `DeploymentError` for a
            finding.
        needs: The names of the checks that must succeed first.
    """

    name: str
    run: Callable[[], str]
    needs: tuple[str, ...] = ()


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
        self._create = str(self._expected["create"])
        self._settings, self._source = find_settings()
        self._region = self._settings.get("GOOGLE_CLOUD_REGION") or str(self._expected["region"])
        if environment:
            self._create = self._create.replace("ENVIRONMENT", environment)
            self._source = f"infra/environments/{environment}.tfvars"

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
            Check("function URL", self.function_urls, ("settings",)),
            Check("token", self.token, ("function URL", "login")),
            Check("messages", self.messages, ("token",)),
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
        for name in (*_SETTINGS, *_url_variables()):
            if not self._settings.get(name):
                raise finding(
                    f"{self._source} does not set {name}.", "see orchestrator/.env.example."
                )
        return f"{self._source}, for {self._settings['GOOGLE_CLOUD_PROJECT']}"

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
                f"Could not reach Google: {_root_cause(error)}.", "check the network and its proxy."
            ) from error
        except GoogleAuthError as error:
            raise finding(f"Google rejects your login: {error}.", LOGIN) from error
        self._api = GoogleApi(credentials)
        return getattr(credentials, "service_account_email", None) or "a person's account"

    def project(self) -> str:
        """Check that the project exists and is visible to you.

        Raises:
            DeploymentError: It is not, or it is being deleted, or the request failed.
        """
        project = self._settings["GOOGLE_CLOUD_PROJECT"]
        try:
            found = find_project(self._api, project)
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
        """Check that the APIs that a function needs are enabled.

        Raises:
            DeploymentError: Some are not, or the request failed.
        """
        parent, names = f"projects/{self._project_number}", self._expected["apis"]["names"]
        if missing := disabled_apis(self._api, parent, names):
            raise finding(
                f"Not enabled: {', '.join(missing)}.",
                f"gcloud services enable {' '.join(missing)} "
                f"--project={self._settings['GOOGLE_CLOUD_PROJECT']}",
            )
        return f"{len(names)} enabled"

    def roles(self) -> str:
        """Check that you have the permissions to deploy.

        Raises:
            DeploymentError: A role is missing, or the request failed.
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
            raise finding(
                f"You lack roles to deploy: {', '.join(missing)}.",
                f"ask an administrator of the project {project} for them.",
            )
        return "you may deploy"

    def region(self) -> str:
        """Check that functions can run in the region.

        Raises:
            DeploymentError: They cannot, or the request failed.
        """
        project = self._settings["GOOGLE_CLOUD_PROJECT"]
        found = self._api.request(
            "GET",
            f"https://cloudfunctions.googleapis.com/v2/projects/{project}/locations",
            params={"pageSize": "500"},
        )
        regions = sorted(location["locationId"] for location in found.get("locations", []))
        if self._region not in regions:
            raise finding(
                f"Cloud Run functions do not run in the region {self._region}.",
                f"use one of {', '.join(regions)}.",
            )
        return self._region

    def buckets(self) -> str:
        """Check that the buckets exist, in this project and in this region.

        Raises:
            DeploymentError: One of them does not, or the request failed.
        """
        names = [
            self._settings["LAKE_URI"].removeprefix("gs://"),
            self._settings["MESSAGES_BUCKET"],
        ]
        for name in names:
            self._check_bucket(name)
        return " and ".join(names)

    def _check_bucket(self, name: str) -> None:
        try:
            bucket = find_bucket(self._api, name)
        except GoogleError as error:
            if error.status == 404:
                raise finding(f"There is no bucket {name}.", self._create) from error
            if error.status == 403:
                raise finding(
                    f"The bucket {name} has another owner, or you may not see it: {error}",
                    "choose another name: all of Google Cloud shares the names of buckets.",
                ) from error
            raise
        if str(bucket.get("projectNumber")) != self._project_number:
            raise finding(f"The bucket {name} belongs to another project.", "choose another name.")
        if self._region not in _regions(bucket):
            raise finding(
                f"The bucket {name} is in {bucket['location'].lower()}, not in {self._region}.",
                "a bucket cannot be moved: choose another name, or its region for the function.",
            )

    def function_urls(self) -> str:
        """Check that each function exists, and rejects requests without a token.

        Raises:
            DeploymentError: One of them does not exist, or is public.
        """
        for variable, url in self._function_urls().items():
            self._check_function(variable, url)
        return f"{' and '.join(self._function_urls().values())}: no access without a token"

    def _function_urls(self) -> dict[str, str]:
        return {name: self._settings[name] for name in _url_variables()}

    def _check_function(self, variable: str, url: str) -> None:
        try:
            status = requests.get(url, timeout=_TIMEOUT, allow_redirects=False).status_code
        except requests.RequestException as error:
            problem = f"Could not reach {url}: {_root_cause(error)}."
            raise finding(problem, f"correct {variable}.") from error
        if status == 404:
            raise finding(f"There is no function at {url}.", self._create)
        if status not in (401, 403):
            raise finding(
                f"{url} responded {status} to a request without a token, instead of 401 or 403.",
                "remove allUsers and allAuthenticatedUsers from roles/run.invoker.",
            )

    def token(self) -> str:
        """Check that Dagster can get an identity token for each function.

        Raises:
            DeploymentError: It cannot, or the test call could not start.
        """
        self._reports = [self._ping_patiently(url) for url in self._function_urls().values()]
        for report in self._reports:
            if problem := report["token"]:
                raise finding(problem, "correct orchestrator/.env, or log in to another account.")
        return "Dagster can get an identity token"

    def messages(self) -> str:
        """Check that Dagster can call each function and read its messages.

        Raises:
            DeploymentError: A call failed, or its messages were lost.
        """
        for report in self._reports:
            if problem := report["round_trip"]:
                reason = problem.partition("\n\n")[0]  # without the function's traceback
                raise finding(reason, "see README.md, 'When a call fails'.")
        return "Dagster called the function and received its messages"

    def _ping_patiently(self, url: str) -> dict[str, Any]:
        """Call a function. If it was just deployed, wait until its roles are effective."""
        report = self._ping(url)
        if _is_forbidden(report) and self._is_new(url):
            print(f"waiting  token: {url} was just deployed, and responds 403.", flush=True)
            deadline = time.monotonic() + _WAIT_FOR_ROLES
            while _is_forbidden(report) and time.monotonic() < deadline:
                time.sleep(_INTERVAL)
                report = self._ping(url)
        return report

    def _is_new(self, url: str) -> bool:
        """True if the function with this URL was deployed minutes ago."""
        project = self._settings["GOOGLE_CLOUD_PROJECT"]
        parent = f"projects/{project}/locations/{self._region}"
        try:
            found = self._api.request(
                "GET",
                f"https://cloudfunctions.googleapis.com/v2/{parent}/functions",
                params={"pageSize": "500"},
            )
        except GoogleError:
            return False
        now = datetime.now(UTC)
        return any(
            url in (function.get("url"), function.get("serviceConfig", {}).get("uri"))
            and now - datetime.fromisoformat(function["updateTime"]) < _NEW
            for function in found.get("functions", [])
        )

    def _ping(self, url: str) -> dict[str, Any]:
        try:
            done = subprocess.run(
                [UV, "run", "python", "-m", "local_cloud.ping"],
                cwd=ORCHESTRATOR,
                env={**os.environ, **self._settings, "FUNCTION_URL": url},
                capture_output=True,
                text=True,
                timeout=_ROUND_TRIP_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            problem = f"The test call timed out after {_ROUND_TRIP_TIMEOUT:.0f} s."
            raise finding(problem, "see the function's logs.") from error
        if done.returncode != 0:
            last_line = done.stderr.strip().rpartition("\n")[2]
            raise finding(f"The test call could not start: {last_line}.", "uv run just check")
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report


def expected() -> dict[str, Any]:
    """What the doctor expects of this machine and of Google Cloud, from doctor.toml."""
    return tomllib.loads((Path(__file__).parent / "doctor.toml").read_text())


def finding(problem: str, fix: str) -> DeploymentError:
    """The error for a finding.

    Args:
        problem: A sentence, with its full stop.
        fix: A command, or the rest of a sentence that starts with `Fix:`.
    """
    return DeploymentError(f"{problem} Fix: {fix}")


def find_settings() -> tuple[dict[str, str], str]:
    """The settings that Dagster would use, and the file with them."""
    name = ".env" if (ORCHESTRATOR / ".env").exists() else ".env.example"
    values = {**dotenv_values(ORCHESTRATOR / name), **os.environ}
    names = (*_SETTINGS, *_url_variables(), *_OPTIONAL_SETTINGS)
    settings = {key: value for key in names if (value := values.get(key))}
    return settings, f"orchestrator/{name}"


def _is_forbidden(report: Mapping[str, Any]) -> bool:
    """True if a test call failed because of a missing role."""
    return re.search(r"\b403\b", f"{report['token']} {report['round_trip']}") is not None


def _regions(bucket: Mapping[str, Any]) -> list[str]:
    """The region of a bucket, or both of a bucket in two regions."""
    placement = bucket.get("customPlacementConfig", {}).get("dataLocations")
    return [each.lower() for each in placement or [bucket["location"]]]


def _url_variables() -> list[str]:
    return [url_variable(folder) for folder in function_folders()]


def _root_cause(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


if __name__ == "__main__":
    sys.exit(main())
