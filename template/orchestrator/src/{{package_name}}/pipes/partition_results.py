"""What the calls for many partitions bring into the event log of their step."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from typing import Any

import dagster as dg

from .context_data import StepContext, checks_of_step, is_observable, required_assets
from .dagster_internals import NO_FURTHER_EVENT, is_called_directly, materialization_tags
from .results import Result
from .verdict import check_key

PartitionEvent = (
    dg.AssetMaterialization
    | dg.AssetObservation
    | dg.AssetCheckEvaluation
    | dg.AssetCheckResult
    | dg.MaterializeResult[Any]
    | dg.ObserveResult
    | dg.Output[None]
)
"""What a step yields that does the work of many partitions."""

_PROGRESS_INTERVAL = 10.0  # seconds, at least, between two lines on how far the step is
_REASONS_TOLD = 20  # in the summary of a step; the log has all of them
_KEYS_TOLD = 1_000  # in metadata
_RESUMES = "dagster/is_resume_retry"  # the tag of a run that does again what failed in its parent


class PartitionResults:
    """Makes the events of each partition, and keeps account of all.

    Args:
        context: The context of the assets.
        partition_keys: The partitions that there are calls for.
    """

    def __init__(self, context: StepContext, partition_keys: Sequence[str]) -> None:
        self._context = context
        self._partition_keys = partition_keys
        self._checks = {key: _Check(context, key) for key in checks_of_step(context)}
        self._is_observable = is_observable(context)
        self._reported: set[dg.AssetKey] = set()
        self._succeeded: set[str] = set()
        self._failed: dict[str, str] = {}
        self._told = time.monotonic()

    def succeed(
        self,
        partition_key: str,
        results: Sequence[Result],
        observations: Sequence[dg.AssetObservation],
    ) -> Iterator[PartitionEvent]:
        """The events of a partition whose call did all that it was to do.

        Args:
            partition_key: The partition.
            results: What the function reported.
            observations: What the function observed.
        """
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
        self._tell_progress()

    def fail(self, partition_key: str, problem: str, reason: str) -> None:
        """Note that the call for a partition failed, and log why.

        Args:
            partition_key: The partition.
            problem: Why, in full.
            reason: Why, in a line.
        """
        self._failed[partition_key] = reason
        self._context.log.error(f"[{partition_key}] {problem}")
        self._tell_progress()

    def conclude(self) -> Iterator[PartitionEvent]:
        """What the step yields beside the events of the partitions, when all is over."""
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
        """Why the step fails, by a line for each of the first failures; None if it does not."""
        not_begun = len(self._partition_keys) - len(self._succeeded) - len(self._failed)
        if not (self._failed or not_begun):
            return None
        counts = f"{len(self._failed)} of {len(self._partition_keys)} partitions failed"
        if not_begun:
            counts += f", and {not_begun} were not begun"
        reasons = [f"{key}: {reason}" for key, reason in self._failed.items()]
        if (more := len(reasons) - _REASONS_TOLD) > 0:
            reasons[_REASONS_TOLD:] = [f"{more} more: the log says why."]
        rest = (
            f"{len(self._succeeded)} succeeded. A retry of the step, or of the run from its "
            "failure, leaves them as they are."
        )
        return "\n".join([f"{counts}.", *reasons, rest])

    @property
    def metadata(self) -> dict[str, dg.MetadataValue]:
        """How many partitions succeeded and failed, and which failed."""
        return {
            "partitions_succeeded": dg.MetadataValue.int(len(self._succeeded)),
            "partitions_failed": dg.MetadataValue.int(len(self._failed)),
            "failed_partitions": dg.MetadataValue.json(list(self._failed)[:_KEYS_TOLD]),
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
        """An evaluation, if the check has one for each partition; else it is for the end."""
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

    def _tell_progress(self) -> None:
        """Log how far the step is, but not after every call, and always after the last one."""
        done, all_of_them = len(self._succeeded) + len(self._failed), len(self._partition_keys)
        now = time.monotonic()
        if done == all_of_them or now - self._told > _PROGRESS_INTERVAL:
            self._told = now
            self._context.log.info(
                f"{done} of {all_of_them} partitions are done, {len(self._failed)} of them failed"
            )


class _Check:
    """A check that is evaluated once for all partitions, and passes if it passed for each.

    What an earlier attempt found of partitions that have no call in this one still counts.
    """

    def __init__(self, context: StepContext, key: dg.AssetCheckKey) -> None:
        self._context = context
        self._key = key
        self._checked = 0
        self._failed: dict[str, dg.AssetCheckSeverity] = {}
        self._example: dg.AssetCheckResult | None = None
        if earlier := _latest_evaluation(context, key):
            found: dict[str, Any] = {name: each.value for name, each in earlier.metadata.items()}
            self._checked = found["partitions_checked"]
            self._failed = dict.fromkeys(found["failed_partitions"], earlier.severity)
            self._example = dg.AssetCheckResult(passed=earlier.passed, metadata=earlier.metadata)

    def add(self, partition_key: str, result: dg.AssetCheckResult) -> None:
        """Note what was found of a partition."""
        self._checked += 1
        self._failed.pop(partition_key, None)
        if not result.passed:
            self._failed[partition_key] = result.severity
        if self._example is None or (self._example.passed and not result.passed):
            self._example = result

    def conclude(self) -> dg.AssetCheckResult | dg.Output[None]:
        """The evaluation, with the metadata of a partition that failed; none if there is none."""
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


def _latest_evaluation(
    context: StepContext, key: dg.AssetCheckKey
) -> dg.AssetCheckEvaluation | None:
    """What an earlier attempt found of all partitions that it had calls for."""
    for run_id in _attempts(context):
        events = context.instance.all_logs(
            run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
        )
        for entry in reversed(events):
            evaluation: Any = entry.dagster_event and entry.dagster_event.event_specific_data
            if evaluation and evaluation.asset_check_key == key and evaluation.partition is None:
                found: dg.AssetCheckEvaluation = evaluation
                return found
    return None


def missing_partitions(context: StepContext) -> list[str]:
    """The partitions of the run, but for those that an earlier attempt at it has materialized.

    That is an earlier attempt of the step, or a run that this one resumes from its failure.

    Args:
        context: The context of the assets.
    """
    done: dict[dg.AssetKey, set[str | None]] = defaultdict(set)
    for run_id in _attempts(context):
        for event in _materializations(context.instance, run_id):
            done[event.asset_key].add(event.partition)
    assets = required_assets(context) or context.selected_asset_keys
    complete = set.intersection(*(done[key] for key in assets)) if assets else set()
    missing = [key for key in context.partition_keys if key not in complete]
    if complete:
        context.log.info(
            f"{len(context.partition_keys) - len(missing)} of {len(context.partition_keys)} "
            "partitions were materialized by an earlier attempt"
        )
    return missing


def _attempts(context: StepContext) -> list[str]:
    """The IDs of this run, if the step is retried, and of those that it resumes."""
    if is_called_directly(context):
        return []
    run_ids = [context.run.run_id] if context.retry_number else []
    run: dg.DagsterRun | None = context.run
    while run and run.parent_run_id and run.tags.get(_RESUMES) == "true":
        run_ids.append(run.parent_run_id)
        run = context.instance.get_run_by_id(run.parent_run_id)
    return run_ids


def _materializations(
    instance: dg.DagsterInstance, run_id: str
) -> Iterator[dg.AssetMaterialization]:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        if entry.asset_materialization is not None:
            yield entry.asset_materialization
