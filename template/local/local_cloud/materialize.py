"""Materializes all assets once, and writes down what happened.

Runs in the orchestrator's environment: `python -m local_cloud.materialize PACKAGE REPORT`, with the
orchestrator's package and the path of the JSON file to write. `demo` shows the report.
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

_MOST_PARTITIONS = 3


def materialize(package: str) -> dict[str, Any]:
    """Materialize all assets on a Dagster instance of its own, kept in memory.

    Of partitioned assets, only the newest partitions are made; none where there is none yet.

    Args:
        package: The name of the orchestrator's package.

    Returns:
        `seconds`, how long the runs took; `assets`, by their keys, each with the `partitions` that
        were made, if it has any, and with the `data_version` and the `metadata` of the last one;
        `logs`, pairs of level and message; `checks`, pairs of a check and whether it passed;
        `errors`, why it failed, if it did.
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
    """The runs that materialize all assets, each with its assets and with its partitions.

    The partitions are arguments of `execute_in_process`.

    Args:
        definitions: All that the orchestrator defines.
        instance: Knows the partitions that are added while Dagster runs.
    """
    graph = definitions.resolve_asset_graph()
    assets = [graph.get(key) for key in graph.toposorted_asset_keys]
    assets = [asset for asset in assets if asset.is_executable]
    for partitions, alike in groupby(assets, key=lambda asset: asset.partitions_def):
        group = list(alike)
        selection = [asset.key for asset in group]
        if partitions is None:
            yield selection, {}
        elif keys := partitions.get_partition_keys(dynamic_partitions_store=instance):
            yield selection, newest(keys, group[0].backfill_policy)


def newest(
    partition_keys: Sequence[str], backfill_policy: dg.BackfillPolicy | None
) -> dict[str, Any]:
    """The newest partitions, or the one, if a run of the asset can have no more.

    Args:
        partition_keys: All partitions of the asset, of which there is at least one.
        backfill_policy: The asset's own; only by `single_run()` can a run have more than one.

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
    """Add to the report what an entry of the event log says.

    Args:
        entry: An entry of a run's event log.
        report: What `materialize` is to return, as far as it is known.
    """
    event = entry.dagster_event
    if event is None:
        report["logs"].append((logging.getLevelName(entry.level), entry.user_message))
    elif event.is_step_materialization:
        made = event.step_materialization_data.materialization
        asset = report["assets"].setdefault(made.asset_key.to_user_string(), {"partitions": []})
        asset["data_version"] = (made.tags or {}).get("dagster/data_version")
        asset["metadata"] = {name: _text(value) for name, value in made.metadata.items()}
        if made.partition:
            asset["partitions"].append(made.partition)
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
    """Why a step or a run failed: what its error began with, without the stack.

    Args:
        event: An event that tells of the failure.
    """
    data: Any = event.event_specific_data
    if (failure := getattr(data, "user_failure_data", None)) and failure.description:
        return str(failure.description)
    error = getattr(data, "error", None)
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else (event.message or "")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(materialize(sys.argv[1])))
