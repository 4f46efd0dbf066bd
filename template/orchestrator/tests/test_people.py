"""The example asset, materialized through the served function and the emulated storage."""

import logging
from collections.abc import Mapping
from typing import Any

import dagster as dg
import polars as pl
from deltalake import DeltaTable


def materialize(
    definitions: dg.Definitions, instance: dg.DagsterInstance, asset: str, **config: object
) -> dg.ExecuteInProcessResult:
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        {"ops": {asset: {"config": config}}} if config else None,
        instance=instance,
        asset_selection=[dg.AssetKey(asset)],
        raise_on_error=False,
    )


def materialization(result: dg.ExecuteInProcessResult) -> dg.AssetMaterialization:
    [event] = result.get_asset_materialization_events()
    return event.step_materialization_data.materialization


def values(materialization: dg.AssetMaterialization) -> Mapping[str, Any]:
    return {name: value.value for name, value in materialization.metadata.items()}


def test_the_function_materializes_the_asset_again_and_again(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    """Two calls of one function process, each with messages of its own."""
    runs = [materialize(definitions, instance, "people") for _ in range(2)]

    first, second = (materialization(run) for run in runs)
    assert [run.success for run in runs] == [True, True]
    assert values(second)["table_version"] == values(first)["table_version"] + 1


def test_the_event_log_has_what_the_function_reported(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    result = materialize(definitions, instance, "people")

    logged = {
        entry.user_message: entry.level
        for entry in instance.all_logs(result.run_id)
        if entry.dagster_event is None
    }
    [storing] = (level for message, level in logged.items() if message.startswith("Storing data"))
    assert storing == logging.DEBUG

    event = instance.get_latest_materialization_event(dg.AssetKey("people"))
    assert event is not None
    assert event.run_id == result.run_id
    assert event.asset_materialization is not None
    metadata = values(event.asset_materialization)
    assert event.asset_materialization.tags is not None
    assert event.asset_materialization.tags["dagster/data_version"] == str(
        metadata["table_version"]
    )
    assert isinstance(
        event.asset_materialization.metadata["dagster/column_schema"], dg.TableSchemaMetadataValue
    )
    assert isinstance(event.asset_materialization.metadata["preview"], dg.MarkdownMetadataValue)
    [trace] = (text for text in logged if text.startswith("Cloud function trace: "))
    assert logged[trace] == logging.INFO
    assert f"| trace | {trace.split(': ')[1]} |" in metadata["cloud_function_call"]
    assert "| status | 200 |" in metadata["cloud_function_call"]
    assert metadata["cloud_function_seconds"] > 0


def test_the_table_holds_the_rows_that_the_metadata_says(
    definitions: dg.Definitions, instance: dg.DagsterInstance, settings: Mapping[str, str]
) -> None:
    result = materialize(definitions, instance, "people", rows=1_000)
    metadata = values(materialization(result))

    assert metadata["table_location"] == f"{settings['LAKE_URI']}/people"
    table = pl.scan_delta(DeltaTable(metadata["table_location"])).collect()
    assert metadata["dagster/row_count"] == table.height == 1_000
    assert [column.name for column in metadata["dagster/column_schema"].columns] == table.columns


def test_its_schedule_is_off_until_it_is_started(definitions: dg.Definitions) -> None:
    schedule = definitions.get_schedule_def("people_every_morning")

    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
