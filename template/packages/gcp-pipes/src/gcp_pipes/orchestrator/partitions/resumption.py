"""What an earlier attempt at a step has done already, by the event log."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import dagster as dg

from gcp_pipes.orchestrator.context import StepContext, required_assets
from gcp_pipes.orchestrator.step_calls import earlier_run_ids


def latest_evaluation(
    context: StepContext, key: dg.AssetCheckKey
) -> dg.AssetCheckEvaluation | None:
    """The evaluation of a check by an earlier attempt, for all partitions that it had calls for."""
    for run_id in reversed(earlier_run_ids(context)):
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
    """The partitions of the run, without those that an earlier attempt has materialized.

    An earlier attempt is one of the step, or a run that this one re-executes from failure.
    """
    done: dict[dg.AssetKey, set[str | None]] = defaultdict(set)
    for run_id in earlier_run_ids(context):
        for event in _materializations(context.instance, run_id):
            done[event.asset_key].add(event.partition)
    if not done:
        return list(context.partition_keys)
    assets = required_assets(context) or context.selected_asset_keys
    # With SQLite, a crash can leave an event in the log of its run, but not in that of its asset.
    recorded = [done[key] & context.instance.get_materialized_partitions(key) for key in assets]
    complete = set.intersection(*recorded) if recorded else set()
    missing = [key for key in context.partition_keys if key not in complete]
    if complete:
        context.log.info(
            f"{len(context.partition_keys) - len(missing)} of {len(context.partition_keys)} "
            "partitions were materialized by an earlier attempt"
        )
    return missing


def _materializations(
    instance: dg.DagsterInstance, run_id: str
) -> Iterator[dg.AssetMaterialization]:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        if entry.asset_materialization is not None:
            yield entry.asset_materialization
