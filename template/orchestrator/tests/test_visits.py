"""The example of an asset with partitions, materialized in the local cloud."""

from collections.abc import Mapping
from datetime import date

import dagster as dg
import polars as pl
import pytest
from deltalake import DeltaTable

PEOPLE, VISITS = dg.AssetKey("people"), dg.AssetKey("visits")
DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]


@pytest.fixture
def job(definitions: dg.Definitions, instance: dg.DagsterInstance) -> dg.JobDefinition:
    """All assets. There are all people who may visit."""
    job = definitions.resolve_implicit_global_asset_job_def()
    config = {"ops": {"people": {"config": {"rows": 1_000}}}}
    assert job.execute_in_process(config, instance=instance, asset_selection=[PEOPLE]).success
    return job


def test_each_day_of_a_run_has_a_call_and_a_part_of_the_table(
    job: dg.JobDefinition, instance: dg.DagsterInstance, settings: Mapping[str, str]
) -> None:
    result = job.execute_in_process(
        instance=instance,
        asset_selection=[VISITS],
        tags={
            "dagster/asset_partition_range_start": DAYS[0],
            "dagster/asset_partition_range_end": DAYS[-1],
        },
    )

    events = result.get_asset_materialization_events()
    assert sorted(str(event.partition) for event in events) == DAYS
    [check] = result.get_asset_check_evaluations()
    assert check.passed
    assert check.metadata["partitions_checked"].value == len(DAYS)
    table = pl.scan_delta(DeltaTable(f"{settings['LAKE_URI']}/visits")).collect()
    for day in DAYS:
        assert table.filter(day=date.fromisoformat(day)).height == 100


def test_new_people_request_the_newest_day(
    job: dg.JobDefinition, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    first = dg.evaluate_automation_conditions(definitions, instance)
    job.execute_in_process(instance=instance, asset_selection=[PEOPLE])

    second = dg.evaluate_automation_conditions(definitions, instance, cursor=first.cursor)

    partitions_def = definitions.resolve_asset_graph().get(VISITS).partitions_def
    assert partitions_def is not None
    assert second.get_requested_partitions(VISITS) == {partitions_def.get_last_partition_key()}


def test_its_definition_links_to_the_source_of_its_task(definitions: dg.Definitions) -> None:
    [spec] = (spec for spec in definitions.resolve_all_asset_specs() if spec.key == VISITS)

    references = spec.metadata["dagster/code_references"].code_references
    assert any(reference.file_path.endswith("tasks/visits.py") for reference in references)
