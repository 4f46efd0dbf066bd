"""A Pipes context that records what a task reports."""

import pytest
from dagster_pipes import DagsterPipesError

from gcp_pipes.external import report_asset_observation
from gcp_pipes.external.testing import RecordingPipesContext, ReportedAsset, ReportedCheck


def test_reports_are_recorded_by_kind() -> None:
    pipes = RecordingPipesContext("lake/people", extras={"team": "a"})

    pipes.log.warning("careful")
    pipes.report_asset_materialization(metadata={"rows": 5}, data_version="3")
    pipes.report_asset_check("fresh", passed=False, severity="WARN", metadata={"hours": 30})
    report_asset_observation(pipes, "raw", metadata={"files": 2}, data_version="7")
    pipes.report_custom_message({"any": "thing"})

    assert pipes.logs == [("WARNING", "careful")]
    assert pipes.materializations == {
        "lake/people": ReportedAsset("lake/people", {"rows": 5}, "3"),
    }
    assert pipes.checks == {
        "fresh": ReportedCheck("lake/people", "fresh", False, "WARN", {"hours": 30})
    }
    assert pipes.observations == [ReportedAsset("raw", {"files": 2}, "7")]
    assert pipes.custom_messages == [{"any": "thing"}]


def test_the_context_is_that_of_the_call() -> None:
    pipes = RecordingPipesContext("a", "b", partition_key="2026-01-01", extras={"team": "a"})

    assert pipes.asset_keys == ["a", "b"]
    assert pipes.partition_key == "2026-01-01"
    assert pipes.partition_key_range == {"start": "2026-01-01", "end": "2026-01-01"}
    assert pipes.extras == {"team": "a"}
    assert not RecordingPipesContext().is_asset_step


def test_an_invalid_report_is_an_error_as_in_a_deployed_function() -> None:
    pipes = RecordingPipesContext("people")

    with pytest.raises(DagsterPipesError, match="'rows'"):
        pipes.report_asset_materialization(metadata={"rows": object()})
    with pytest.raises(DagsterPipesError, match="other"):
        pipes.report_asset_materialization(asset_key="other")
