"""What the function is told of the run that it works for: the Pipes context of a call."""

from collections.abc import Sequence

import dagster as dg
from dagster_pipes import PipesContextData, PipesExtras, PipesTimeWindow

from .dagster_internals import build_external_execution_context_data, upstream_data_versions

Context = dg.OpExecutionContext | dg.AssetExecutionContext


def build_context_data(
    context: Context, *, extras: PipesExtras | None = None, run_tags: Sequence[str] = ()
) -> PipesContextData:
    """The Pipes context of a call that does all the work of a step.

    It is Dagster's own, and has beside that the partitions of a run that has a range of them, and
    two extras: `run_tags`, and for assets `upstream_data_versions`, by asset key.

    Args:
        context: The context of the asset or op.
        extras: More values, which the function finds as `pipes.extras`.
        run_tags: Names of the run's tags that the function is told of, if the run has them.
    """
    more: dict[str, object] = {
        "run_tags": {name: context.run.tags[name] for name in run_tags if name in context.run.tags}
    }
    if context.has_assets_def:
        more["upstream_data_versions"] = {
            key.to_escaped_user_string(): version
            for key, version in upstream_data_versions(context).items()
        }
    data = build_external_execution_context_data(context, {**more, **(extras or {})})
    if context.has_partition_key_range and partitions_def(context) is not None:
        keys = context.partition_key_range
        _tell_partitions(data, context, keys.start, keys.end)
    return data


def for_partition(context: Context, data: PipesContextData, key: str) -> PipesContextData:
    """The Pipes context `data`, for a call that does the work of the partition `key` alone.

    Args:
        context: The context of the asset.
        data: What `build_context_data` returned; it stays as it is.
        key: The partition.
    """
    data = data.copy()
    data["partition_key"] = key
    _tell_partitions(data, context, key, key)
    return data


def partitions_def(context: Context) -> dg.PartitionsDefinition | None:
    """How the assets of the step are partitioned; None if they are not, or if it has none.

    Args:
        context: The context of the asset or op.
    """
    return context.assets_def.partitions_def if context.has_assets_def else None


def required_assets(context: Context) -> set[dg.AssetKey]:
    """The assets that the step has to materialize: all but those that are `skippable`.

    Args:
        context: The context of the assets.
    """
    specs = (context.assets_def.get_asset_spec(key) for key in context.selected_asset_keys)
    return {spec.key for spec in specs if not spec.skippable}


def _tell_partitions(data: PipesContextData, context: Context, first: str, last: str) -> None:
    data["partition_key_range"] = {"start": first, "end": last}
    data["partition_time_window"] = _time_window(partitions_def(context), first, last)


def _time_window(
    definition: dg.PartitionsDefinition | None, first: str, last: str
) -> PipesTimeWindow | None:
    """From the start of one partition to the end of another; None if they are not of time."""
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
