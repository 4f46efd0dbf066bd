"""What runs leave in Dagster's event log: the assets, the checks, the log lines and the errors."""

import logging
from collections.abc import Sequence
from typing import Any

import dagster as dg

_RUN_FAILURE = dg.DagsterEventType.RUN_FAILURE  # which repeats the error of the step


def new_report() -> dict[str, Any]:
    """A report without entries, of JSON types.

    Returns:
        `assets` by key, each with the number of materialized `partitions`, and with the
        `partition`, the `data_version` and the `metadata` of the newest one; `checks` and `logs`,
        pairs of a name and whether the check passed, and of a level and a message; `errors`, the
        messages of all failures.
    """
    return {"assets": {}, "checks": [], "logs": [], "errors": []}


def add(entry: dg.EventLogEntry, report: dict[str, Any], partition_keys: Sequence[str]) -> None:
    """Add an entry of a run's event log to a report.

    Args:
        entry: The entry.
        report: The report.
        partition_keys: The partitions of the run, from the oldest to the newest.
    """
    event = entry.dagster_event
    if event is None:
        report["logs"].append((logging.getLevelName(entry.level), entry.user_message))
    elif event.is_step_materialization:
        _add_materialization(
            event.step_materialization_data.materialization, report, partition_keys
        )
    elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        evaluation: Any = event.event_specific_data
        name = evaluation.asset_check_key.to_user_string()
        report["checks"].append((name, evaluation.passed))
    elif event.is_failure and not (event.event_type is _RUN_FAILURE and report["errors"]):
        report["errors"].append(reason(event))


def _add_materialization(
    materialization: dg.AssetMaterialization, report: dict[str, Any], partition_keys: Sequence[str]
) -> None:
    key, partition = materialization.asset_key.to_user_string(), materialization.partition
    asset = report["assets"].setdefault(key, {"partitions": 0, "partition": None})
    asset["partitions"] += partition is not None
    order: list[str | None] = [None, *partition_keys]
    if order.index(partition) >= order.index(asset["partition"]):
        asset["partition"] = partition
        asset["data_version"] = (materialization.tags or {}).get("dagster/data_version")
        asset["metadata"] = {name: _text(value) for name, value in materialization.metadata.items()}


def _text(value: dg.MetadataValue[Any]) -> str:
    match value:
        case dg.TableSchemaMetadataValue():
            return ", ".join(f"{column.name} {column.type}" for column in value.schema.columns)
        case dg.TableColumnLineageMetadataValue():
            return "; ".join(
                f"{column} from {dep.asset_key.to_user_string()}.{dep.column_name}"
                for column, deps in value.column_lineage.deps_by_column.items()
                for dep in deps
            )
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
