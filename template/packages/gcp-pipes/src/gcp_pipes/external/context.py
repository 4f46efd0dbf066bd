"""The Pipes context of a call: what its task is given as `pipes`."""

from collections.abc import Mapping
from typing import Any, get_args

from dagster_pipes import (
    DagsterPipesError,
    PipesAssetCheckSeverity,
    PipesContext,
    PipesContextLoader,
    PipesMessageWriter,
    PipesParamsLoader,
)

from gcp_pipes.external.logs import make_ready_for_dagster
from gcp_pipes.external.metadata import as_json, typed_metadata


class PipesCloudFunctionContext(PipesContext):
    """Dagster's own Pipes context, which takes more kinds of values and refuses wrong ones by name.

    Metadata may hold dates, decimals, paths and what else `typed_metadata` converts. `log` takes
    any level, and sends tracebacks, too.

    Args:
        params_loader: Finds the parameters of Pipes.
        context_loader: Loads the context of the Dagster run.
        message_writer: Takes the messages to Dagster.
    """

    def __init__(
        self,
        params_loader: PipesParamsLoader,
        context_loader: PipesContextLoader,
        message_writer: PipesMessageWriter[Any],
    ) -> None:
        super().__init__(params_loader, context_loader, message_writer)
        self.log.setLevel(1)
        self.log.addFilter(make_ready_for_dagster)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        """Close the context. An exception that counts as false, as an empty list does, is one, too.

        Args:
            exc_type: The class of the exception with which the block ended, or None.
            exc_value: The exception.
            traceback: Its traceback.
        """
        if exc_value is not None and not exc_value:
            wrapper = DagsterPipesError(f"The task raised {exc_type.__name__}.")
            wrapper.__cause__ = exc_value
            exc_type, exc_value = DagsterPipesError, wrapper
        super().__exit__(exc_type, exc_value, traceback)

    def report_asset_materialization(
        self,
        metadata: Mapping[str, Any] | None = None,
        data_version: str | None = None,
        asset_key: str | None = None,
    ) -> None:
        """Report that an asset was materialized.

        Args:
            metadata: Values as they are, or each with its Pipes type, by their names.
            data_version: The version of the data that was written.
            asset_key: The asset; it has to be named if the call is for several.

        Raises:
            DagsterPipesError: An argument cannot be reported, or the asset was reported already.
        """
        super().report_asset_materialization(
            typed_metadata(metadata or {}), data_version, asset_key
        )

    def report_asset_check(
        self,
        check_name: str,
        passed: bool,
        severity: PipesAssetCheckSeverity = "ERROR",
        metadata: Mapping[str, Any] | None = None,
        asset_key: str | None = None,
    ) -> None:
        """Report what an asset check has found.

        Args:
            check_name: The check.
            passed: Whether it passed.
            severity: `ERROR` or `WARN`, of a check that failed.
            metadata: Values as they are, or each with its Pipes type, by their names.
            asset_key: The asset; it has to be named if the call is for several.

        Raises:
            DagsterPipesError: An argument cannot be reported.
        """
        if severity not in get_args(PipesAssetCheckSeverity):
            raise DagsterPipesError(
                f"The severity of the check {check_name!r} must be ERROR or WARN; it is "
                f"{severity!r}."
            )
        super().report_asset_check(
            check_name,
            passed.tolist() if hasattr(passed, "tolist") else passed,  # NumPy has its own booleans
            severity,
            typed_metadata(metadata or {}),
            asset_key,
        )

    def report_custom_message(self, payload: Any) -> None:
        """Send a message that the asset's own code reads.

        Args:
            payload: JSON, or what `typed_metadata` converts.

        Raises:
            DagsterPipesError: The payload has no JSON form.
        """
        super().report_custom_message(as_json("The custom message", payload))
