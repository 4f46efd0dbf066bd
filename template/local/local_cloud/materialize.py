"""Materializes all assets once, and writes a report for the demo.

Runs in the orchestrator's environment: `python -m local_cloud.materialize REPORT`, with the path of
the JSON file to write.
"""

import importlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import dagster as dg
from local_cloud.cloud import root_module

_MOST_PARTITIONS = 3


def materialize(package: str) -> dict[str, Any]:
    """Materialize all assets in a new Dagster instance, in memory.

    Of partitioned assets, only the newest partitions are materialized.

    Args:
        package: The name of the orchestrator's package.

    Returns:
        `seconds`, the duration of the runs; `assets` by key, each with the materialized
        `partitions`, and with the `data_version` and the `metadata` of the last one; `logs`, pairs
        of level and message; `checks`, pairs of a name and whether the check passed; `errors`, the
        messages of all failures.
    """
    definitions: dg.Definitions = importlib.import_module(f"{package}.definitions").defs()
    job = definitions.resolve_implicit_global_asset_job_def()
    report: dict[str, Any] = {"assets": {}, "logs": [], "checks": [], "errors": []}
    started = time.monotonic()
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        for selection, partitions in runs(definitions, instance):
            result = job.execute_in_process(
                instance=instance, asset_selection=selection, raise_on_error=False, **partitions
            )
            for entry in instance.all_logs(result.run_id):
                add(entry, report)
            if not result.success:
                break
    report["seconds"] = time.monotonic() - started
    return report


def runs(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> Iterator[tuple[list[dg.AssetKey], dict[str, Any]]]:
    """The runs that materialize all assets: for each, the assets and the partitions.

    The partitions are arguments of `execute_in_process`.

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
            yield selection, {}
        elif keys := partitions.get_partition_keys(dynamic_partitions_store=instance):
            yield selection, newest(keys, first.backfill_policy)


def newest(
    partition_keys: Sequence[str], backfill_policy: dg.BackfillPolicy | None
) -> dict[str, Any]:
    """The newest partitions, or only one if a run of the asset cannot have more.

    Args:
        partition_keys: All partitions of the asset: at least one.
        backfill_policy: The asset's policy. Only with `single_run()` can a run have several.

    Returns:
        Arguments of `execute_in_process`: `partition_key`, or `tags` with a range.
    """
    keys = partition_keys[-_MOST_PARTITIONS:]
    if backfill_policy != dg.BackfillPolicy.single_run():
        return {"partition_key": keys[-1]}
    return {
        "tags": {
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        }
    }


def add(entry: dg.EventLogEntry, report: dict[str, Any]) -> None:
    """Add an entry of the event log to the report.

    Args:
        entry: An entry of a run's event log.
        report: The report that `materialize` returns.
    """
    event = entry.dagster_event
    if event is None:
        report["logs"].append((logging.getLevelName(entry.level), entry.user_message))
    elif event.is_step_materialization:
        materialization = event.step_materialization_data.materialization
        key = materialization.asset_key.to_user_string()
        asset = report["assets"].setdefault(key, {"partitions": []})
        asset["data_version"] = (materialization.tags or {}).get("dagster/data_version")
        asset["metadata"] = {name: _text(value) for name, value in materialization.metadata.items()}
        if materialization.partition:
            asset["partitions"].append(materialization.partition)
    elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        evaluation: Any = event.event_specific_data
        name = evaluation.asset_check_key.to_user_string()
        report["checks"].append((name, evaluation.passed))
    elif event.is_failure:
        report["errors"].append(reason(event))


def _text(value: dg.MetadataValue[Any]) -> str:
    if isinstance(value, dg.TableSchemaMetadataValue):
        return ", ".join(f"{column.name} {column.type}" for column in value.schema.columns)
    return str(value.value)


def reason(event: dg.DagsterEvent) -> str:
    """The root cause of a failure, without its traceback.

    Args:
        event: The failure of a step or of a run.
    """
    data: Any = event.event_specific_data
    if (failure := getattr(data, "user_failure_data", None)) and failure.description:
        return str(failure.description)
    error = getattr(data, "error", None)
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else (event.message or "")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(materialize(root_module())))
