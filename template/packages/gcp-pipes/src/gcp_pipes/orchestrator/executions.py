"""The executions of a Cloud Run job, by the Cloud Run Admin API.

https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.jobs.executions
"""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import requests
from google.api_core.exceptions import BadRequest, GoogleAPICallError, NotFound, RetryError
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import run_v2
from google.cloud.run_v2.services.executions.transports.rest import ExecutionsRestTransport
from google.cloud.run_v2.services.jobs.transports.rest import JobsRestTransport
from google.cloud.run_v2.services.tasks.transports.rest import TasksRestTransport

from gcp_pipes.orchestrator.auth import find_credentials
from gcp_pipes.orchestrator.urls import is_loopback

API_ERRORS = (GoogleAPICallError, RetryError, GoogleAuthError, requests.RequestException)
"""What a request to the API may raise."""

_TIMEOUT = 30.0  # seconds to wait for a response
_INTERVAL = 15.0  # seconds between two looks at an execution; the quota of the API is small
_LOCAL_INTERVAL = 0.5  # seconds
_MOST_EXECUTIONS = 300  # to look at


class RunClients(NamedTuple):
    """The clients of the API, for any number of jobs. Threads use them at the same time.

    Attributes:
        jobs: Runs jobs.
        executions: Looks at executions, and cancels them.
        tasks: Looks at the tasks of executions.
        interval: How long to wait between two looks at an execution, in seconds.
    """

    jobs: run_v2.JobsClient
    executions: run_v2.ExecutionsClient
    tasks: run_v2.TasksClient
    interval: float

    def close(self) -> None:
        """Close the connections."""
        self.jobs.transport.close()
        self.executions.transport.close()
        self.tasks.transport.close()


def run_clients(endpoint: str, impersonate: str | None) -> RunClients:
    """The clients of the API.

    Args:
        endpoint: The URL of the API. One of this machine gets no credentials.
        impersonate: The e-mail address of a service account to act as.

    Raises:
        CredentialsError: There are no credentials.
    """
    is_local = is_loopback(endpoint)
    credentials = AnonymousCredentials() if is_local else find_credentials(impersonate)
    return RunClients(
        run_v2.JobsClient(transport=JobsRestTransport(host=endpoint, credentials=credentials)),
        run_v2.ExecutionsClient(
            transport=ExecutionsRestTransport(host=endpoint, credentials=credentials)
        ),
        run_v2.TasksClient(transport=TasksRestTransport(host=endpoint, credentials=credentials)),
        _LOCAL_INTERVAL if is_local else _INTERVAL,
    )


class JobExecutions:
    """The executions of one job.

    Args:
        job: The full name of the job: `projects/PROJECT/locations/REGION/jobs/NAME`.
        clients: The clients of the API.
    """

    def __init__(self, job: str, clients: RunClients) -> None:
        self.job = job
        self.interval = clients.interval
        self._jobs = clients.jobs
        self._executions = clients.executions
        self._tasks = clients.tasks
        self._lock = threading.Lock()  # guards the attribute below
        self._questions: dict[str, _Question] = defaultdict(_Question)

    def run(
        self,
        environment: Mapping[str, str],
        *,
        args: Sequence[str] | None,
        tasks: int,
        timeout: float,
    ) -> str:
        """Start an execution, in one request, which is not repeated.

        Args:
            environment: Environment variables of the container, in addition to the job's own.
            args: Replace the arguments of the container; None keeps them.
            tasks: How many tasks it has.
            timeout: After how many seconds Cloud Run ends a task.

        Returns:
            The name of the execution.

        Raises:
            Exception: One of `API_ERRORS`.
        """
        container = run_v2.RunJobRequest.Overrides.ContainerOverride(
            env=[run_v2.EnvVar(name=name, value=value) for name, value in environment.items()],
            args=args or [],
            clear_args=args is not None and not args,
        )
        overrides = run_v2.RunJobRequest.Overrides(
            container_overrides=[container],
            task_count=tasks,
            timeout={"seconds": round(timeout)},
        )
        request = run_v2.RunJobRequest(name=self.job, overrides=overrides)
        operation = self._jobs.run_job(request, retry=None, timeout=_TIMEOUT)
        return str(operation.metadata.name)

    def get(self, name: str, max_age: float | None = None) -> run_v2.Execution:
        """An execution.

        Args:
            name: The name of the execution.
            max_age: How many seconds ago the API may have said so; half an interval by default.

        Raises:
            NotFound: It was deleted.
            Exception: One of `API_ERRORS`.
        """
        get = partial(self._executions.get_execution, name=name, retry=None, timeout=_TIMEOUT)
        found: run_v2.Execution = self._ask_seldom(name, get, max_age)
        return found

    def task(self, execution: run_v2.Execution, index: int) -> run_v2.Task | None:
        """A task of an execution; None if that cannot be known now.

        Args:
            execution: The execution. Once it has ended, the task is as it was after that.
            index: The index of the task, from 0.
        """

        def list_tasks() -> dict[int, run_v2.Task]:
            listed = self._tasks.list_tasks(parent=execution.name, retry=None, timeout=_TIMEOUT)
            return {task.index: task for task in listed}

        has_ended = bool(execution.completion_time)
        with suppress(*API_ERRORS):
            tasks: dict[int, run_v2.Task] = self._ask_seldom(
                f"{execution.name}/tasks/{has_ended}", list_tasks
            )
            return tasks.get(index)
        return None

    def newest_first(self, max_age: float | None = None) -> Sequence[run_v2.Execution]:
        """The latest executions of the job.

        Args:
            max_age: As for `get`.

        Raises:
            Exception: One of `API_ERRORS`.
        """

        def list_latest() -> Sequence[run_v2.Execution]:
            listed = self._executions.list_executions(parent=self.job, retry=None, timeout=_TIMEOUT)
            return list(islice(listed, _MOST_EXECUTIONS))

        latest: Sequence[run_v2.Execution] = self._ask_seldom(self.job, list_latest, max_age)
        return latest

    def cancel(self, name: str, timeout: float) -> None:
        """Cancel an execution, unless it has ended. Transient errors are retried.

        Args:
            name: The name of the execution.
            timeout: How long that may take, in seconds.

        Raises:
            Exception: One of `API_ERRORS`.
        """
        retry = Retry(initial=0.25, maximum=2.0, timeout=timeout)
        try:
            self._executions.cancel_execution(name=name, retry=retry, timeout=timeout)
        except NotFound:  # it was deleted
            pass
        except BadRequest:
            if not self.get(name, max_age=0.0).completion_time:
                raise

    def _ask_seldom(self, about: str, ask: Callable[[], Any], max_age: float | None = None) -> Any:
        """What the API says, or the error that it responds with, also to others that ask soon.

        Hundreds of threads may wait for the tasks of one execution.
        """
        with self._lock:
            question = self._questions[about]
        with question.asking:
            age = self.interval / 2 if max_age is None else max_age
            if time.monotonic() - question.asked >= age:
                question.answer, question.error = None, None
                try:
                    question.answer = ask()
                except API_ERRORS as error:
                    question.error = error
                question.asked = time.monotonic()
            if question.error is not None:
                raise question.error
            return question.answer


class _Question:
    """What the API was asked, and what it said."""

    def __init__(self) -> None:
        self.asking = threading.Lock()  # one request at a time; guards the attributes below
        self.asked = -math.inf
        self.answer: Any = None
        self.error: Exception | None = None


def environment_of(execution: run_v2.Execution) -> dict[str, str]:
    """The environment variables of an execution.

    Args:
        execution: The execution.
    """
    containers = execution.template.containers
    return {each.name: each.value for container in containers for each in container.env}
