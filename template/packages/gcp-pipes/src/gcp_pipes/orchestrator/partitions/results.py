"""The events of many partitions, and the summary of their step."""

import time
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from typing import Any

import dagster as dg

from gcp_pipes.orchestrator.context import (
    StepContext,
    checks_of_step,
    is_observable,
    required_assets,
)
from gcp_pipes.orchestrator.dagster_internals import (
    NO_FURTHER_EVENT,
    materialization_tags,
)
from gcp_pipes.orchestrator.outcome import check_key
from gcp_pipes.orchestrator.partitions.resumption import latest_evaluation
from gcp_pipes.orchestrator.results import Result

PartitionEvent = (
    dg.AssetMaterialization
    | dg.AssetObservation
    | dg.AssetCheckEvaluation
    | dg.AssetCheckResult
    | dg.MaterializeResult[Any]
    | dg.ObserveResult
    | dg.Output[None]
)
"""What a step with many partitions yields."""

_PROGRESS_INTERVAL = 10.0  # seconds, at least, between two log lines on the progress
_MOST_REASONS = 20  # in the summary of a step; the log has all of them
_MOST_KEYS = 1_000  # in metadata


class PartitionResults:
    """Makes the events of each partition, and counts the partitions."""

    def __init__(self, context: StepContext, partition_keys: Sequence[str]) -> None:
        self._context = context
        self._partition_keys = partition_keys
        self._checks = {key: _Check(context, key) for key in checks_of_step(context)}
        self._is_observable = is_observable(context)
        self._reported: set[dg.AssetKey] = set()
        self._succeeded: set[str] = set()
        self._failed: dict[str, str] = {}
        self._logged = time.monotonic()

    def succeed(
        self,
        partition_key: str,
        results: Sequence[Result],
        observations: Sequence[dg.AssetObservation],
    ) -> Iterator[PartitionEvent]:
        """The events of a partition whose call succeeded."""
        self._succeeded.add(partition_key)
        yield from observations
        for result in results:
            if isinstance(result, dg.AssetCheckResult):
                yield from self._check(partition_key, result)
                continue
            assert result.asset_key is not None  # noqa: S101  # no function can report without it
            self._reported.add(result.asset_key)
            if isinstance(result, dg.MaterializeResult):
                yield self._asset_event(partition_key, result.asset_key, result)
        self._log_progress()

    def fail(self, partition_key: str, problem: str, reason: str) -> None:
        """Log and record that the call for a partition failed."""
        self._failed[partition_key] = reason
        self._context.log.error(f"[{partition_key}] {problem}")
        self._log_progress()

    def conclude(self) -> Iterator[PartitionEvent]:
        """What the step yields at its end, after the events of the partitions."""
        for check in self._checks.values():
            yield check.conclude()
        if not self.problem:
            result = dg.ObserveResult if self._is_observable else dg.MaterializeResult
            for asset_key in self._assets_in_order():
                yield result(asset_key=asset_key, metadata=NO_FURTHER_EVENT)

    def _assets_in_order(self) -> list[dg.AssetKey]:
        """The assets that there are results of, each after those that it depends on."""
        made = required_assets(self._context) | self._reported
        deps = self._context.assets_def.asset_deps
        upstream = {key: set(deps[key]) - {key} for key in made}
        return [key for key in TopologicalSorter(upstream).static_order() if key in made]

    @property
    def problem(self) -> str | None:
        """Why the step fails, with a line for each of the first failures; None if it succeeds."""
        not_started = len(self._partition_keys) - len(self._succeeded) - len(self._failed)
        if not (self._failed or not_started):
            return None
        counts = f"{len(self._failed)} of {len(self._partition_keys)} partitions failed"
        if not_started:
            counts += f", and {not_started} were not started"
        reasons = [f"{key}: {reason}" for key, reason in self._failed.items()]
        if (more := len(reasons) - _MOST_REASONS) > 0:
            reasons[_MOST_REASONS:] = [f"{more} more: see the log."]
        rest = (
            f"{len(self._succeeded)} succeeded. A retry of the step, or a re-execution from "
            "failure, does not call for them again."
        )
        return "\n".join([f"{counts}.", *reasons, rest])

    @property
    def metadata(self) -> dict[str, dg.MetadataValue]:
        """How many partitions succeeded and failed, and which failed."""
        return {
            "partitions_succeeded": dg.MetadataValue.int(len(self._succeeded)),
            "partitions_failed": dg.MetadataValue.int(len(self._failed)),
            "failed_partitions": dg.MetadataValue.json(list(self._failed)[:_MOST_KEYS]),
        }

    def _asset_event(
        self, partition_key: str, asset_key: dg.AssetKey, result: dg.MaterializeResult[Any]
    ) -> dg.AssetMaterialization | dg.AssetObservation:
        if self._is_observable:
            version = result.data_version
            return dg.AssetObservation(
                asset_key,
                partition=partition_key,
                metadata=result.metadata,
                tags={} if version is None else {"dagster/data_version": version.value},
            )
        return dg.AssetMaterialization(
            asset_key,
            partition=partition_key,
            metadata=result.metadata,
            tags=materialization_tags(self._context, asset_key, partition_key, result.data_version),
        )

    def _check(
        self, partition_key: str, result: dg.AssetCheckResult
    ) -> Iterator[dg.AssetCheckEvaluation]:
        """The evaluation of a check that is partitioned; others are evaluated at the end."""
        key = check_key(result)
        spec = self._context.assets_def.get_spec_for_check_key(key)
        if spec.partitions_def is None:
            self._checks[key].add(partition_key, result)
            return
        yield dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=result.passed,
            severity=result.severity,
            metadata=result.metadata,
            blocking=spec.blocking,
            partition=partition_key,
        )

    def _log_progress(self) -> None:
        """Log the progress: every ten seconds, and after the last call."""
        done, total = len(self._succeeded) + len(self._failed), len(self._partition_keys)
        now = time.monotonic()
        if done == total or now - self._logged > _PROGRESS_INTERVAL:
            self._logged = now
            self._context.log.info(
                f"{done} of {total} partitions are done, {len(self._failed)} of them failed"
            )


class _Check:
    """A check that is evaluated once for all partitions, and passes if it passed for each.

    The results of an earlier attempt count for partitions that are not called for again.
    """

    def __init__(self, context: StepContext, key: dg.AssetCheckKey) -> None:
        self._context = context
        self._key = key
        self._checked = 0
        self._failed: dict[str, dg.AssetCheckSeverity] = {}
        self._example: dg.AssetCheckResult | None = None
        if earlier := latest_evaluation(context, key):
            found: dict[str, Any] = {name: each.value for name, each in earlier.metadata.items()}
            self._checked = found["partitions_checked"]
            self._failed = dict.fromkeys(found["failed_partitions"], earlier.severity)
            self._example = dg.AssetCheckResult(passed=earlier.passed, metadata=earlier.metadata)

    def add(self, partition_key: str, result: dg.AssetCheckResult) -> None:
        """Add the result of a partition."""
        self._checked += 1
        self._failed.pop(partition_key, None)
        if not result.passed:
            self._failed[partition_key] = result.severity
        if self._example is None or (self._example.passed and not result.passed):
            self._example = result

    def conclude(self) -> dg.AssetCheckResult | dg.Output[None]:
        """The evaluation, with the metadata of a partition that failed, if any did."""
        if self._example is None:
            name = self._context.assets_def.get_output_name_for_asset_check_key(self._key)
            return dg.Output(None, name)
        severities = {*self._failed.values()} or {dg.AssetCheckSeverity.ERROR}
        return dg.AssetCheckResult(
            asset_key=self._key.asset_key,
            check_name=self._key.name,
            passed=not self._failed,
            severity=max(severities, key=lambda each: each is dg.AssetCheckSeverity.ERROR),
            metadata={
                **self._example.metadata,
                "partitions_checked": min(self._checked, len(self._context.partition_keys)),
                "failed_partitions": sorted(self._failed),
            },
        )
