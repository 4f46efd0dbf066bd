"""The Pipes context of a call, which its task receives as `pipes`."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, get_args

from dagster_pipes import (
    DagsterPipesError,
    PipesAssetCheckSeverity,
    PipesContext,
    PipesContextLoader,
    PipesMessageWriter,
    PipesParamsLoader,
)
from opentelemetry.trace import get_current_span

from gcp_pipes.external.logs import prepare_for_dagster
from gcp_pipes.external.metadata import to_json, typed_metadata
from gcp_pipes.telemetry import record_error


class PipesCloudFunctionContext(PipesContext):
    """Dagster's Pipes context, with more types of metadata, and errors that name a wrong value.

    Metadata may contain JSON and, also in lists and dictionaries, `Path`, `date`, `datetime` (with
    a time zone, it becomes a timestamp), `time`, `timedelta`, `UUID`, `Enum`, `Decimal` (text if a
    number would lose digits), and scalars, arrays and series of NumPy, Polars and pandas.

    `log` accepts any level, and sends tracebacks.

    Args:
        params_loader: Loads the parameters of Pipes.
        context_loader: Loads the context of the Dagster run.
        message_writer: Writes the messages to Dagster.
        span: Ends the current span, which the context does when it is closed.
    """

    def __init__(
        self,
        params_loader: PipesParamsLoader,
        context_loader: PipesContextLoader,
        message_writer: PipesMessageWriter[Any],
        span: ExitStack | None = None,
    ) -> None:
        super().__init__(params_loader, context_loader, message_writer)
        self.log.setLevel(1)
        self.log.addFilter(prepare_for_dagster)
        self._span = ExitStack() if span is None else span.pop_all()
        self._describe_span()

    def _describe_span(self) -> None:
        span = get_current_span()
        if not span.is_recording():
            return
        span.set_attribute("dagster.run_id", self.run_id)
        span.set_attribute("dagster.retry_number", self.retry_number)
        if self.is_asset_step:
            span.set_attribute("dagster.asset_keys", self.asset_keys)
        if self.is_partition_step:
            first, last = self.partition_key_range["start"], self.partition_key_range["end"]
            if first == last:
                span.set_attribute("dagster.partition_key", first)
            else:
                span.set_attribute("dagster.partition_key_range", [first, last])

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        """Close the context. Report an exception even if it is falsy, which Dagster does not."""
        if exc_value is not None and not exc_value:
            wrapper = DagsterPipesError(f"The task raised {exc_type.__name__}.")
            wrapper.__cause__ = exc_value
            exc_type, exc_value = DagsterPipesError, wrapper
        with self._span:  # in it, since the last messages are part of the call
            if exc_value is not None:
                record_error(get_current_span(), exc_value)
            super().__exit__(exc_type, exc_value, traceback)

    def report_asset_materialization(
        self,
        metadata: Mapping[str, Any] | None = None,
        data_version: str | None = None,
        asset_key: str | None = None,
    ) -> None:
        """Report that an asset was materialized.

        Args:
            metadata: By name, values or dictionaries with a `type` and a `raw_value`.
            data_version: The version of the data that was written.
            asset_key: The asset. Required if the call is for several.

        Raises:
            DagsterPipesError: An argument is invalid, or the asset was reported already.
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
        """Report the result of an asset check.

        Args:
            check_name: The name of the check.
            passed: Whether it passed.
            severity: `ERROR` or `WARN`, if it failed.
            metadata: By name, values or dictionaries with a `type` and a `raw_value`.
            asset_key: The asset. Required if the call is for several.

        Raises:
            DagsterPipesError: An argument is invalid.
        """
        if severity not in get_args(PipesAssetCheckSeverity):
            raise DagsterPipesError(
                f"The severity of the check {check_name!r} must be ERROR or WARN; it is "
                f"{severity!r}."
            )
        super().report_asset_check(
            check_name,
            passed.tolist() if hasattr(passed, "tolist") else passed,  # NumPy's booleans
            severity,
            typed_metadata(metadata or {}),
            asset_key,
        )

    def report_custom_message(self, payload: Any) -> None:
        """Send a message that the asset's own code reads.

        Args:
            payload: JSON, which may contain the same types as metadata.

        Raises:
            DagsterPipesError: The payload is not JSON serializable.
        """
        super().report_custom_message(to_json("The custom message", payload))
