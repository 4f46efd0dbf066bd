"""What the doctor checks of the Cloud Run jobs."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from deployment.checks import Check, TargetChecks, finding
from deployment.google import SCOPES, GoogleApi, GoogleError, find_credentials
from deployment.project import name_in_cloud, task_folders
from google.auth import impersonated_credentials
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

API = "https://run.googleapis.com/v2"
"""The URL of the Cloud Run Admin API."""

_BUCKETS = "https://storage.googleapis.com/storage/v1/b"
_LATER = "A new role is effective after some minutes."
_PLACEHOLDER = "us-docker.pkg.dev/cloudrun/container/job"  # an image that does nothing
_TO_RUN = ("run.jobs.run", "run.jobs.runWithOverrides")
_TO_READ = ("storage.objects.get", "storage.objects.list")


def job_folders() -> list[Path]:
    """The folders of the jobs: those with tasks and an entry point for jobs."""
    return [folder for folder in task_folders() if (folder / "job.py").exists()]


class JobChecks(TargetChecks):
    """The checks of the jobs: they are deployed, and Dagster may run them."""

    plural = "Cloud Run jobs"
    api = "https://run.googleapis.com/v1"  # v2 does not list regions

    @staticmethod
    def required_settings() -> list[str]:
        """The name of the first job, and the region of all of them."""
        return ["JOB_NAME", "GOOGLE_CLOUD_REGION"]

    def checks(self) -> list[Check]:
        """The checks, in the order in which an execution would fail."""
        return [
            Check("job", self.jobs, ("region",)),
            Check("job settings", self.job_settings, ("job",)),
            Check("account", self.account, ("job",)),
        ]

    def jobs(self) -> str:
        """Check that each job exists, and can run the code of its folder.

        Raises:
            DeploymentError: One of them does not or cannot, or a request failed.
        """
        first = self._diagnosis.settings["JOB_NAME"]
        names = [name_in_cloud(folder, first) for folder in job_folders()]
        self._jobs = {name: self._find(name) for name in names}
        for name, job in self._jobs.items():
            self._check_state(name, job)
        return " and ".join(names)

    def _find(self, name: str) -> dict[str, Any]:
        try:
            return self._diagnosis.api.request("GET", self._url(name))
        except GoogleError as error:
            if error.status != 404:
                raise
            problem = f"There is no job {name} in {self._diagnosis.region}."
            raise finding(problem, self._diagnosis.fixes["create"]) from error

    def _url(self, name: str) -> str:
        parent = f"projects/{self._diagnosis.project}/locations/{self._diagnosis.region}"
        return f"{API}/{parent}/jobs/{name}"

    def _check_state(self, name: str, job: dict[str, Any]) -> None:
        if job.get("reconciling"):
            raise finding(f"The job {name} is being updated.", "wait until that has ended.")
        condition = job.get("terminalCondition", {})
        if condition.get("state") != "CONDITION_SUCCEEDED":
            reason = str(condition.get("message") or condition.get("state")).removesuffix(".")
            problem = f"The job {name} cannot run: {reason}."
            raise finding(problem, self._diagnosis.fixes["deploy_job"])
        if _container(job)["image"].startswith(_PLACEHOLDER):
            problem = f"The job {name} has no code: its image is Google's placeholder."
            raise finding(problem, self._diagnosis.fixes["deploy_job"])

    def job_settings(self) -> str:
        """Check that only Dagster retries the tasks of each job, and that it reads their messages.

        Raises:
            DeploymentError: Google retries them, too, or their messages go to another bucket.
        """
        bucket = self._diagnosis.settings["MESSAGES_BUCKET"]
        for name, job in self._jobs.items():
            if retries := job["template"]["template"].get("maxRetries", 0):
                raise finding(
                    f"Google starts a failed task of the job {name} again, up to {retries} times, "
                    "and Dagster retries it, too.",
                    f"gcloud run jobs update {name} --max-retries=0 "
                    f"--region={self._diagnosis.region} --project={self._diagnosis.project}",
                )
            variables = {each["name"]: each.get("value") for each in _container(job).get("env", [])}
            if (found := variables.get("MESSAGES_BUCKET", "no bucket")) != bucket:
                raise finding(
                    f"The messages of the job {name} go to {found}, and Dagster reads them from "
                    f"{bucket}.",
                    "set the job's environment variable MESSAGES_BUCKET to the bucket in "
                    f"{self._diagnosis.source}.",
                )
        return f"no retries by Google, and messages to {bucket}"

    def account(self) -> str:
        """Check that the account that Dagster acts as may run each job, and read its messages.

        Raises:
            DeploymentError: You cannot act as it, or it may not, or a request failed.
        """
        credentials, account = self._find_account()
        bucket = self._diagnosis.settings["MESSAGES_BUCKET"]
        with closing(GoogleApi(credentials)) as api:
            for name in self._jobs:
                url = f"{self._url(name)}:testIamPermissions"
                found = api.request("POST", url, json={"permissions": _TO_RUN})
                if missing := _missing(_TO_RUN, found):
                    raise finding(
                        f"{account} may not run the job {name}: {missing} missing.",
                        f"grant it roles/run.jobsExecutorWithOverrides on the job. {_LATER}",
                    )
            url = f"{_BUCKETS}/{bucket}/iam/testPermissions"
            found = api.request("GET", url, params={"permissions": list(_TO_READ)})
            if missing := _missing(_TO_READ, found):
                raise finding(
                    f"{account} may not read messages in the bucket {bucket}: {missing} missing.",
                    f"grant it roles/storage.objectViewer on the bucket. {_LATER}",
                )
        return f"{account} may run {' and '.join(self._jobs)}, and read messages in {bucket}"

    def _find_account(self) -> tuple[Credentials, str]:
        """The credentials of the account that Dagster acts as, and what to call it."""
        credentials = find_credentials()
        account = self._diagnosis.settings.get("IMPERSONATE_SERVICE_ACCOUNT")
        if not account:
            return credentials, "Your account"
        acting = impersonated_credentials.Credentials(credentials, account, SCOPES, delegates=[])
        try:
            acting.refresh(Request())
        except GoogleAuthError as error:
            raise finding(
                f"You cannot act as {account}: {error}.",
                "correct IMPERSONATE_SERVICE_ACCOUNT, or let an administrator grant you "
                "roles/iam.serviceAccountTokenCreator on it.",
            ) from error
        return acting, account


def _missing(needed: Sequence[str], found: Mapping[str, Any]) -> str:
    """The permissions that an account lacks, by the response of Google."""
    return " and ".join(sorted(set(needed) - set(found.get("permissions", []))))


def _container(job: dict[str, Any]) -> dict[str, Any]:
    """The container that runs the tasks."""
    container: dict[str, Any] = job["template"]["template"]["containers"][0]
    return container
