"""Materializes all assets once, and writes down what happened.

Runs in the orchestrator's environment: `python -m local_cloud.materialize PACKAGE REPORT`, with the
orchestrator's package and the path of the JSON file to write. `demo` shows the report.
"""

import importlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg


def materialize(package: str) -> dict[str, Any]:
    """Run the job of all assets on a Dagster instance of its own, kept in memory.

    Returns:
        `seconds`, how long the run took; `assets`, by their keys, each with a `data_version` and
        `metadata`; `logs`, pairs of level and message; `errors`, why it failed, if it did.
    """
    definitions: dg.Definitions = importlib.import_module(f"{package}.definitions").defs()
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        started = time.monotonic()
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        seconds = time.monotonic() - started
        entries = instance.all_logs(result.run_id)

    report: dict[str, Any] = {"seconds": seconds, "assets": {}, "logs": [], "errors": []}
    for entry in entries:
        event = entry.dagster_event
        if event is None:
            level = logging.getLevelName(entry.level)
            report["logs"].append((level, entry.user_message))
        elif event.is_step_materialization:
            materialization = event.step_materialization_data.materialization
            report["assets"][materialization.asset_key.to_user_string()] = {
                "data_version": (materialization.tags or {}).get("dagster/data_version"),
                "metadata": {
                    name: _text(value) for name, value in materialization.metadata.items()
                },
            }
        elif event.is_failure:
            report["errors"].append(reason(event))
    return report


def _text(value: dg.MetadataValue[Any]) -> str:
    if isinstance(value, dg.TableSchemaMetadataValue):
        return ", ".join(f"{column.name} {column.type}" for column in value.schema.columns)
    return str(value.value)


def reason(event: dg.DagsterEvent) -> str:
    """Why a step or a run failed: what its error began with, without the stack."""
    data: Any = event.event_specific_data
    if (failure := getattr(data, "user_failure_data", None)) and failure.description:
        return str(failure.description)
    error = getattr(data, "error", None)
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else (event.message or "")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(materialize(sys.argv[1])))
