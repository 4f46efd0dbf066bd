"""A component for assets that a Cloud Run job materializes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import dagster as dg
from pydantic import Field

from gcp_pipes.components.checked_component import checked
from gcp_pipes.components.external_asset import ExternalAsset, ExternalAssetScaffolder
from gcp_pipes.components.yaml_errors import Place
from gcp_pipes.orchestrator.code_references import CLOUD_FUNCTION, CLOUD_RUN_JOB


@dg.scaffold_with(ExternalAssetScaffolder)
class CloudRunJobAsset(ExternalAsset):
    """One asset, or several, materialized by an execution of a Cloud Run job.

    For partitioned assets, each partition is a task of the execution. A backfill is one run, with
    one execution; how many of its tasks run at the same time is up to the job.

    A subclass can override `get_asset_spec` and `get_event`. The resource `settings` needs the
    attribute `lake_uri`.
    """

    _client_key: ClassVar[str] = "pipes_job_client"

    job: Annotated[
        str | None,
        checked(
            Annotated[str | None, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$")],
            must_be="the name of a job, of lowercase letters, digits and hyphens",
            description="The name of the Cloud Run job that runs the task, if it is not that of "
            "the client.",
            examples=["train"],
        ),
    ] = None
    timeout: Annotated[
        float | None,
        checked(
            Annotated[float | None, Field(gt=0)],
            must_be="a number of seconds, more than 0",
            description="For how many seconds the task may run, if that is not the client's "
            "timeout.",
            examples=[86400],
        ),
    ] = None
    task_count: Annotated[
        int,
        checked(
            Annotated[int, Field(ge=1, le=10000)],
            must_be="a number from 1 to 10000",
            description="How many tasks do the work together, as one execution. Each finds "
            "`task_index` and `task_count` in pipes.extras.",
            examples=[8],
        ),
    ] = 1

    def _find_target(self, settings: Any, project_root: Path) -> Mapping[str, Any]:
        return {"job": self.job}

    def _get_options(self, *, is_partitioned: bool) -> Mapping[str, Any]:
        tasks = {} if is_partitioned else {"task_count": self.task_count}
        return {"timeout": self.timeout, **tasks}

    def _tasks_folder(self, project_root: Path) -> Path:
        """That of the job: the name of a further job ends with the name of its folder."""
        job = self.job or ""
        is_function = (project_root.parent / CLOUD_FUNCTION / "tasks").is_dir()
        first = CLOUD_FUNCTION if is_function else CLOUD_RUN_JOB
        own = [name for name in _job_folders(project_root) if job.endswith(f"-{_hyphens(name)}")]
        return project_root.parent / max(own, key=len, default=job or first) / "tasks"

    def _find_inconsistencies(self, project_root: Path) -> Iterator[tuple[Place, str]]:
        yield from super()._find_inconsistencies(project_root)
        if self.job and self.job in map(_hyphens, _job_folders(project_root)):
            yield (
                ("job",),
                "must be the name of a job in Google Cloud, and not a folder: the name of the "
                f"first job, and -{self.job}.",
            )
        if self.task_count > 1 and any(spec.partitions_def for spec in self.assets):
            yield ("task_count",), "must be 1 for partitioned assets: each partition is a task."


def _job_folders(project_root: Path) -> list[str]:
    """The names of the folders that are jobs."""
    return [path.parent.name for path in project_root.parent.glob("*/job.py")]


def _hyphens(folder: str) -> str:
    """The name of a folder as it is in the name of a job."""
    return folder.replace("_", "-")
