"""What the checks of the doctor have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from deployment.errors import DeploymentError
from deployment.google import GoogleApi


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


@dataclass
class Diagnosis:
    """What the checks know.

    Attributes:
        settings: The settings that Dagster would use.
        source: The file with them.
        region: The region of the buckets, and of what runs the tasks.
        fixes: How to fix some findings, by a name: those that depend on how the project is
            deployed.
        api: Sends requests to Google, once the check `login` has succeeded.
    """

    settings: Mapping[str, str]
    source: str
    region: str
    fixes: Mapping[str, str]
    api: GoogleApi = field(init=False)

    @property
    def project(self) -> str:
        """The ID of the project in Google Cloud, once the check `settings` has succeeded."""
        return self.settings["GOOGLE_CLOUD_PROJECT"]


class TargetChecks(ABC):
    """The checks of one kind of resource that runs tasks.

    Args:
        diagnosis: What the checks know.

    Attributes:
        plural: What Google calls the kind, in the plural.
        api: The URL of its API, which lists the regions that have it.
        optional_settings: The settings for it that have a default.
    """

    plural: ClassVar[str]
    api: ClassVar[str]
    optional_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, diagnosis: Diagnosis) -> None:
        self._diagnosis = diagnosis

    @staticmethod
    @abstractmethod
    def required_settings() -> list[str]:
        """The settings for it that have no default."""

    @abstractmethod
    def checks(self) -> list[Check]:
        """The checks, after those of the project and its buckets."""


def finding(problem: str, fix: str) -> DeploymentError:
    """The error for a finding.

    Args:
        problem: A sentence, with its full stop.
        fix: A command, or the rest of a sentence that starts with `Fix:`.
    """
    return DeploymentError(f"{problem} Fix: {fix}")


def root_cause(error: BaseException) -> BaseException:
    """The error that an error follows from.

    Args:
        error: The error.
    """
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error
