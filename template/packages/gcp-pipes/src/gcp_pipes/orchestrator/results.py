"""The results of a call that succeeded, for the code of an asset, an asset check or an op."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from gcp_pipes.orchestrator.call import Attempt
from gcp_pipes.orchestrator.context import StepContext, assets_of_step, is_observable
from gcp_pipes.orchestrator.dagster_internals import NO_FURTHER_EVENT
from gcp_pipes.orchestrator.outcome import (
    details,
    find_missing_results,
    summarize,
)

Result = dg.MaterializeResult[Any] | dg.ObserveResult | dg.AssetCheckResult
"""What an asset or an asset check yields."""


class CompletedCall(dg.PipesClientCompletedInvocation):
    """What the task reported in a call that succeeded.

    Args:
        context: The context of the asset, the asset check, or the op.
        attempt: The call's last attempt.
        metadata: The metadata of the call, which each asset gets.
        implicit_materializations: Whether an asset need not be reported.
    """

    def __init__(
        self,
        context: StepContext,
        attempt: Attempt,
        metadata: Mapping[str, dg.MetadataValue],
        *,
        implicit_materializations: bool,
    ) -> None:
        super().__init__(attempt.session, metadata=metadata)
        self._context = context
        self._attempt = attempt
        self._handler = attempt.handler
        self._allows_implicit = implicit_materializations

    def get_results(  # type: ignore[override]  # the base class has no observations
        self, *, implicit_materializations: bool = True
    ) -> Sequence[Result]:
        """The results for the step to yield.

        An observation is in the event log already. Its result only marks the asset as observed.

        Args:
            implicit_materializations: Whether to include assets that the task did not report,
                if the client allows that, too.

        Raises:
            PipesCallError: The task did not report all results of the step.
        """
        implicit = implicit_materializations and self._allows_implicit
        if problem := find_missing_results(self._context, self._attempt, implicit):
            raise self._attempt.launcher.error(
                f"{problem}\n\n{summarize(details(self._attempt))}", metadata=self.metadata
            )
        results = tuple(  # an asset may return it: Dagster accepts no list there
            result
            if isinstance(result, dg.AssetCheckResult)
            else result._replace(metadata={**(result.metadata or {}), **self.metadata})
            for result in self._attempt.session.get_results(implicit_materializations=implicit)
        )
        if not is_observable(self._context):
            return results
        observed = self._observe_results()
        keys = {result.asset_key for result in observed}
        return (
            *observed,
            *(
                result
                for result in results
                if isinstance(result, dg.AssetCheckResult) or result.asset_key not in keys
            ),
        )

    def _observe_results(self) -> list[dg.ObserveResult]:
        """A result for each asset of the step that the task observed."""
        observed = {each.asset_key: each for each in self._handler.observations}
        return [
            dg.ObserveResult(
                asset_key=key,
                metadata={**observed[key].metadata, **NO_FURTHER_EVENT},
                data_version=_data_version(observed[key]),
            )
            for key in assets_of_step(self._context) & observed.keys()
        ]


def _data_version(observation: dg.AssetObservation) -> dg.DataVersion | None:
    version = observation.data_version
    return None if version is None else dg.DataVersion(version)
