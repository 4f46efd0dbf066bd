"""The orchestrator's side in a rendered project, with the newest Dagster: see orchestrator/."""

from conftest import Render, run_orchestrator_tests


def test_the_newest_dagster_gets_all_that_the_function_says(render: Render) -> None:
    run_orchestrator_tests(render())
