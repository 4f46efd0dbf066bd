"""What the doctor checks of the functions.

It also prints a line that starts with "waiting", and says what it waits for.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
from deployment.checks import Check, TargetChecks, finding, root_cause
from deployment.google import GoogleError
from deployment.project import ORCHESTRATOR, TASKS, UV, task_folders

_TIMEOUT = 30.0  # seconds without a response
_ROUND_TRIP_TIMEOUT = 600.0  # seconds, to install the environment and to start an instance

# New roles are effective after minutes.
_NEW = timedelta(minutes=10)
_WAIT_FOR_ROLES = 120.0  # seconds
_INTERVAL = 10.0  # seconds between two calls


def url_variable(folder: Path) -> str:
    """The environment variable of Dagster with the URL of a function.

    Args:
        folder: The folder of the function.
    """
    name = folder.name.upper().replace("-", "_")
    return "FUNCTION_URL" if folder == TASKS else f"FUNCTION_URL_{name}"


class FunctionChecks(TargetChecks):
    """The checks of the functions: they are private, and Dagster can call them."""

    plural = "Cloud Run functions"
    api = "https://cloudfunctions.googleapis.com/v2"
    optional_settings = ("FUNCTION_AUDIENCE", "FUNCTION_TIMEOUT")

    @staticmethod
    def required_settings() -> list[str]:
        """The URLs of the functions."""
        return [url_variable(folder) for folder in task_folders()]

    def checks(self) -> list[Check]:
        """The checks, in the order of a call."""
        return [
            Check("function URL", self.function_urls, ("settings",)),
            Check("token", self.token, ("function URL", "login")),
            Check("messages", self.messages, ("token",)),
        ]

    def function_urls(self) -> str:
        """Check that each function exists, and rejects requests without a token.

        Raises:
            DeploymentError: One of them does not exist, or is public.
        """
        for variable, url in self._function_urls().items():
            self._check_function(variable, url)
        return f"{' and '.join(self._function_urls().values())}: no access without a token"

    def _function_urls(self) -> dict[str, str]:
        return {name: self._diagnosis.settings[name] for name in self.required_settings()}

    def _check_function(self, variable: str, url: str) -> None:
        try:
            status = requests.get(url, timeout=_TIMEOUT, allow_redirects=False).status_code
        except requests.RequestException as error:
            problem = f"Could not reach {url}: {root_cause(error)}."
            raise finding(problem, f"correct {variable}.") from error
        if status == 404:
            raise finding(f"There is no function at {url}.", self._diagnosis.fixes["create"])
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
        parent = f"projects/{self._diagnosis.project}/locations/{self._diagnosis.region}"
        try:
            found = self._diagnosis.api.request(
                "GET", f"{self.api}/{parent}/functions", params={"pageSize": "500"}
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
                env={**os.environ, **self._diagnosis.settings, "FUNCTION_URL": url},
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


def _is_forbidden(report: Mapping[str, Any]) -> bool:
    """True if a test call failed because of a missing role."""
    return re.search(r"\b403\b", f"{report['token']} {report['round_trip']}") is not None
