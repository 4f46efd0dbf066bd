"""Materializes all assets once, and writes a report for the demo.

Runs in the orchestrator's environment: `python -m local_cloud.materialize_all REPORT`, with the
path of the JSON file to write.
"""

import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import dagster as dg
from local_cloud.project import root_module
from local_cloud.results import add, new_report

_MOST_PARTITIONS = 3


def materialize_all(package: str) -> dict[str, Any]:
    """Materialize all assets in a new Dagster instance, in memory.

    Of partitioned assets, only the newest partitions are materialized.

    Args:
        package: The name of the orchestrator's package.

    Returns:
        What the runs left in the event log, as `new_report` describes it, and `seconds`, their
        duration.
    """
    definitions: dg.Definitions = importlib.import_module(f"{package}.definitions").defs()
    job = definitions.resolve_implicit_global_asset_job_def()
    report = new_report()
    started = time.monotonic()
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        for selection, partition_keys in runs(definitions, instance):
            result = job.execute_in_process(
                instance=instance,
                asset_selection=selection,
                raise_on_error=False,
                **run_arguments(partition_keys),
            )
            for entry in instance.all_logs(result.run_id):
                add(entry, report, partition_keys)
            if not result.success:
                break
    report["seconds"] = time.monotonic() - started
    return report


def runs(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> Iterator[tuple[list[dg.AssetKey], Sequence[str]]]:
    """The runs that materialize all assets: for each, the assets and the partitions.

    Args:
        definitions: The orchestrator's definitions.
        instance: The instance that stores dynamic partitions.
    """
    graph = definitions.resolve_asset_graph()
    assets = [graph.get(key) for key in graph.toposorted_asset_keys]
    assets = [asset for asset in assets if asset.is_executable]
    for partitions, group in groupby(assets, key=lambda asset: asset.partitions_def):
        first, *others = group
        selection = [asset.key for asset in (first, *others)]
        if partitions is None:
            yield selection, []
        elif keys := partitions.get_partition_keys(dynamic_partitions_store=instance):
            may_have_many = first.backfill_policy == dg.BackfillPolicy.single_run()
            yield selection, keys[-_MOST_PARTITIONS if may_have_many else -1 :]


def run_arguments(partition_keys: Sequence[str]) -> dict[str, Any]:
    """The arguments of `execute_in_process` for some partitions, which follow each other.

    Args:
        partition_keys: The partitions, or none. A run has several only for assets with
            `BackfillPolicy.single_run()`.
    """
    match partition_keys:
        case []:
            return {}
        case [key]:
            return {"partition_key": key}
    return {
        "tags": {
            "dagster/asset_partition_range_start": partition_keys[0],
            "dagster/asset_partition_range_end": partition_keys[-1],
        }
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(materialize_all(root_module())))
