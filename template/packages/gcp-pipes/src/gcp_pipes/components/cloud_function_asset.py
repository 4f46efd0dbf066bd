"""A component for assets that the cloud function materializes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import dagster as dg
from pydantic import Field

from gcp_pipes.components.checked_component import checked
from gcp_pipes.components.external_asset import ExternalAsset, ExternalAssetScaffolder
from gcp_pipes.orchestrator.cloud_function import PipesCloudFunctionError
from gcp_pipes.orchestrator.code_references import CLOUD_FUNCTION
from gcp_pipes.orchestrator.urls import find_url, url_variable


@dg.scaffold_with(ExternalAssetScaffolder)
class CloudFunctionAsset(ExternalAsset):
    """One asset, or several, materialized by a call of the cloud function.

    For partitioned assets, it calls the function once for each partition. A backfill is one run,
    with at most `max_in_flight` calls in flight.

    A subclass can override `get_asset_spec` and `get_event`. The resource `settings` needs the
    attributes `function_url` and `lake_uri`.
    """

    _client_key: ClassVar[str] = "pipes_function_client"

    function: Annotated[
        str | None,
        checked(
            Annotated[str | None, Field(pattern=r"^(https://.+|[a-z][a-z0-9_-]*)$")],
            must_be="an https URL, or the name of a function",
            description="The function to call instead of cloud_function/: the folder of another "
            "one in this project, the name of one in the same region and Google Cloud project, or "
            "an https URL.",
            examples=["reports", "https://reports-abc123-ez.a.run.app"],
        ),
    ] = None
    timeout: Annotated[
        float | None,
        checked(
            Annotated[float | None, Field(gt=0, le=3600)],
            must_be="a number of seconds, more than 0 and up to 3600",
            description="The function's own timeout in seconds, if it is not FUNCTION_TIMEOUT.",
            examples=[540],
        ),
    ] = None
    max_in_flight: Annotated[
        int,
        checked(
            Annotated[int, Field(ge=1, le=1000)],
            must_be="a number from 1 to 1000",
            description="The maximum number of calls in flight in one run.",
            examples=[100],
        ),
    ] = 10

    def _find_target(self, settings: Any, project_root: Path) -> Mapping[str, Any]:
        return {"function_url": self._function_url(settings.function_url, project_root)}

    def _get_options(self, *, is_partitioned: bool) -> Mapping[str, Any]:
        in_flight = {"max_in_flight": self.max_in_flight} if is_partitioned else {}
        return {"timeout": self.timeout, **in_flight}

    def _tasks_folder(self, project_root: Path) -> Path:
        return project_root.parent / (self.function or CLOUD_FUNCTION) / "tasks"

    def _function_url(self, default: str, project_root: Path) -> str:
        if self.function in (None, CLOUD_FUNCTION):
            return default
        if self.function.startswith("https://"):
            return self.function
        is_in_project = self._tasks_folder(project_root).is_dir()  # its name elsewhere differs
        if url := find_url(self.function, None if is_in_project else default):
            return url
        variable = url_variable(self.function)
        raise PipesCloudFunctionError(
            f"There is no function {self.function!r} that Dagster can call: {variable} is not set, "
            f"and its URL could not be derived from FUNCTION_URL, {default!r}. On your machine, "
            f"it needs a folder {self.function}/, and `just dev` a restart after you added it. "
            f"Otherwise, set {variable} in orchestrator/.env, or `function` to an https URL.",
            allow_retries=False,
        )
