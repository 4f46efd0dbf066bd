"""Builds the Pipes context of a call: what the function receives about the step."""

from collections.abc import Sequence

import dagster as dg
from dagster_pipes import PipesContextData, PipesExtras, PipesTimeWindow

from gcp_pipes.orchestrator.dagster_internals import (
    build_external_execution_context_data,
    is_called_directly,
    keys_of_outputs,
    upstream_data_versions,
)

StepContext = dg.OpExecutionContext
"""The context that all kinds of context have as `op_execution_context`."""

Context = StepContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext
"""The context that Dagster passes to an op, an asset, or an asset check."""


def build_context_data(
    context: StepContext, *, extras: PipesExtras | None = None, run_tags: Sequence[str] = ()
) -> PipesContextData:
    """The Pipes context of a call for a whole step.

    It is Dagster's own, with the partitions of a run that has a range of them, and two extras:
    `run_tags`, and for assets `upstream_data_versions`, by asset key.

    Args:
        context: The context of the asset or op.
        extras: More values for `pipes.extras` in the function.
        run_tags: Names of tags of the run. Those that the run has are sent.
    """
    all_extras: dict[str, object] = {
        "run_tags": {name: context.get_tag(name) for name in run_tags if context.has_tag(name)}
    }
    if context.has_assets_def:
        all_extras["upstream_data_versions"] = {
            key.to_escaped_user_string(): version
            for key, version in upstream_data_versions(context).items()
        }
    all_extras.update(extras or {})
    if is_called_directly(context):
        return _context_data_without_run(context, all_extras)
    data = build_external_execution_context_data(context, all_extras)
    if context.has_partition_key_range and partitions_def(context) is not None:
        keys = context.partition_key_range
        _set_partitions(data, context, keys.start, keys.end)
    return data


def for_partition(context: StepContext, data: PipesContextData, key: str) -> PipesContextData:
    """The Pipes context of a call for one partition."""
    data = data.copy()
    data["partition_key"] = key
    _set_partitions(data, context, key, key)
    return data


def for_task(data: PipesContextData, index: int, count: int) -> PipesContextData:
    """The Pipes context of one of several tasks that make the results of a step together."""
    data = data.copy()
    data["extras"] = {**(data["extras"] or {}), "task_index": index, "task_count": count}
    return data


def partitions_def(context: StepContext) -> dg.PartitionsDefinition | None:
    """The partitions definition of the step's assets, or None without one."""
    return context.assets_def.partitions_def if context.has_assets_def else None


def assets_of_step(context: StepContext) -> set[dg.AssetKey]:
    """The selected assets that the step itself yields.

    An op in a graph-backed asset may yield none.
    """
    return {key for key in keys_of_outputs(context) if isinstance(key, dg.AssetKey)}


def checks_of_step(context: StepContext) -> set[dg.AssetCheckKey]:
    """The selected asset checks that the step itself yields."""
    return {key for key in keys_of_outputs(context) if isinstance(key, dg.AssetCheckKey)}


def required_assets(context: StepContext) -> set[dg.AssetKey]:
    """The assets that the step must materialize or observe: all that are not `skippable`.

    With `can_subset`, Dagster makes every asset skippable, since some may not be selected. Then all
    selected assets are required.
    """
    assets = assets_of_step(context)
    if not assets or context.assets_def.can_subset:
        return assets
    return {key for key in assets if not context.assets_def.get_asset_spec(key).skippable}


def is_observable(context: StepContext) -> bool:
    """Whether the step observes its assets, and does not materialize them."""
    return context.has_assets_def and context.assets_def.is_observable


def _context_data_without_run(context: StepContext, extras: PipesExtras) -> PipesContextData:
    """The Pipes context of an asset or op that is called directly, as in a unit test."""
    code_versions: dict[str, str | None] | None = None
    if context.has_assets_def:
        of_assets = context.assets_def.code_versions_by_key
        keys = sorted(context.selected_asset_keys)
        code_versions = {key.to_escaped_user_string(): of_assets[key] for key in keys}
    data = PipesContextData(
        asset_keys=None if code_versions is None else list(code_versions),
        code_version_by_asset_key=code_versions,
        provenance_by_asset_key=None if code_versions is None else dict.fromkeys(code_versions),
        partition_key=context.partition_key if context.has_partition_key else None,
        partition_key_range=None,
        partition_time_window=None,
        run_id=context.run_id,
        job_name=None,
        retry_number=0,
        extras=extras,
    )
    if context.has_partition_key or context.has_partition_key_range:
        partitions = context.partition_key_range
        _set_partitions(data, context, partitions.start, partitions.end)
    return data


def _set_partitions(data: PipesContextData, context: StepContext, first: str, last: str) -> None:
    data["partition_key_range"] = {"start": first, "end": last}
    data["partition_time_window"] = _time_window(partitions_def(context), first, last)


def _time_window(
    definition: dg.PartitionsDefinition | None, first: str, last: str
) -> PipesTimeWindow | None:
    """From the start of one partition to the end of another; None without time windows."""
    if isinstance(definition, dg.MultiPartitionsDefinition):
        dimensions = [dimension.partitions_def for dimension in definition.partitions_defs]
        if sum(isinstance(each, dg.TimeWindowPartitionsDefinition) for each in dimensions) != 1:
            return None
    elif not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        return None
    return {
        "start": definition.time_window_for_partition_key(first).start.isoformat(),
        "end": definition.time_window_for_partition_key(last).end.isoformat(),
    }
