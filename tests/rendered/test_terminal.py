"""Assets and tasks from the terminal, without `just dev`."""

from pathlib import Path

import pytest
from conftest import Render, Workshop, end, fail, replaced, run, start


@pytest.fixture(scope="module")
def sandbox(render: Render, workshop: Workshop) -> Path:
    """A project in which there are people."""
    project = workshop(render())
    run("uv", "run", "just", "task", "people", "--event", '{"rows": 50}', cwd=project)
    return project


def test_a_task_runs_without_dagster_and_without_a_server(sandbox: Path) -> None:
    command = ("uv", "run", "just", "task", "visits", "--partition", "2026-01-02")

    printed = run(*command, "--event", '{"visits": 7, "visitors": 50}', cwd=sandbox).stdout

    assert "INFO     Wrote 7 visits of 2026-01-02" in printed
    assert "day Date, minute Int64, person_id Int64" in printed
    assert "The check visits:visitors_are_known passed." in printed
    assert "gs://my-gcp-project-data-lake/visits" in printed


def test_a_folder_can_be_the_data_lake(sandbox: Path, tmp_path: Path) -> None:
    lake = ("--lake", str(tmp_path / "a lake"))
    options = (*("--config", '{"rows": 5}'), *lake)

    run("uv", "run", "just", "task", "people", *lake, cwd=sandbox)
    run("uv", "run", "just", "materialize", "people", *options, cwd=sandbox)

    versions = (tmp_path / "a lake" / "people" / "_delta_log").glob("*.json")
    assert len(list(versions)) == 2


def test_a_lake_in_the_messages_bucket_is_an_error(sandbox: Path) -> None:
    [example] = sandbox.glob("orchestrator/.env.example")

    with replaced(example, "gs://my-gcp-project-data-lake", "gs://my-gcp-project-pipes-messages"):
        printed = fail("uv", "run", "just", "task", "people", cwd=sandbox)

    assert "LAKE_URI and MESSAGES_BUCKET name one bucket" in printed
    assert (sandbox / ".local" / "buckets" / "my-gcp-project-data-lake" / "people").is_dir()


def test_commands_that_use_the_local_cloud_at_the_same_time_wait(sandbox: Path) -> None:
    command = ("uv", "run", "just", "task", "visits", "--event", '{"visits": 7, "visitors": 50}')
    days = [f"2026-02-{day:02}" for day in range(1, 5)]

    tasks = [start(*command, "--partition", day, cwd=sandbox) for day in days]

    for day, task in zip(days, tasks, strict=True):
        printed, _ = task.communicate(timeout=120)
        assert task.returncode == 0, printed
        assert f"Wrote 7 visits of {day}" in printed


def test_a_task_that_raises_prints_its_traceback(sandbox: Path) -> None:
    printed = fail("uv", "run", "just", "task", "people", "--event", '{"rows": "x"}', cwd=sandbox)

    assert 'tasks/people.py", line' in printed
    assert "TypeError" in printed


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nonsense"], "There is no task 'nonsense'. The tasks are: people, ping, visits."),
        (["people", "--event", "[1]"], "argument --event: it must be a JSON object, not [1]"),
        (["people", "--event", "{"], "argument --event: it must be a JSON object, not {"),
    ],
)
def test_an_invalid_command_to_run_a_task_is_an_error(
    arguments: list[str], error: str, sandbox: Path
) -> None:
    status, printed = end("uv", "run", "just", "task", *arguments, cwd=sandbox)

    assert status in (1, 2)
    assert error in printed


def test_an_asset_is_materialized_on_a_local_cloud_of_its_own(sandbox: Path) -> None:
    printed = run("uv", "run", "just", "materialize", "people", cwd=sandbox).stdout

    assert "Starts a local cloud, since `just dev` is not running." in printed
    assert "INFO     Writing 1000 rows" in printed
    assert "dagster/row_count" in printed


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nonsense"], "There is no asset 'nonsense'. The assets are: people, visits."),
        (["people", "--partition", "x"], "people has no partitions."),
        (["visits"], "visits has partitions. Choose one, such as --partition 20"),
        (["visits", "--partition", "x"], "visits has no partition 'x'."),
        (["visits", "--partitions", "2026-01-01..x"], "visits has no partition 'x'."),
        (["visits", "--partition", "x..y"], "visits has no partition 'x..y'."),
        (
            ["visits", "--partitions", "2026-01-02..2026-01-01"],
            "The partition '2026-01-02' comes after '2026-01-01'.",
        ),
    ],
)
def test_an_invalid_command_to_materialize_is_an_error(
    arguments: list[str], error: str, sandbox: Path
) -> None:
    assert error in fail("uv", "run", "just", "materialize", *arguments, cwd=sandbox)


def test_a_config_that_is_not_a_json_object_is_an_error(sandbox: Path) -> None:
    command = ("uv", "run", "just", "materialize", "people", "--config", "[1]")

    status, printed = end(*command, cwd=sandbox)

    assert status == 2
    assert "argument --config: it must be a JSON object, not [1]" in printed


def test_an_error_in_yaml_is_printed_alone(sandbox: Path) -> None:
    [definition] = sandbox.glob("orchestrator/src/*/defs/visits/defs.yaml")

    with replaced(definition, "task: visits", "task: visit"):
        printed = fail("uv", "run", "just", "materialize", "visits", cwd=sandbox)

    assert "There is no task 'visit' in cloud_function/tasks/." in printed
    assert "Did you mean visits?" in printed
    assert "Traceback" not in printed


def test_a_config_that_the_asset_does_not_have_is_an_error(sandbox: Path) -> None:
    command = ("uv", "run", "just", "materialize", "people", "--config", '{"row": 5}')

    printed = fail(*command, cwd=sandbox)

    assert 'unexpected config entry "row"' in printed
    assert "Traceback" not in printed


def test_a_failed_materialization_has_a_status_and_its_reason(sandbox: Path) -> None:
    task = sandbox / "cloud_function" / "tasks" / "visits.py"
    command = ("uv", "run", "just", "materialize", "visits", "--partition", "2026-01-02")

    with replaced(task, "    day = pipes.partition_key", '    raise ValueError("no luck")'):
        printed = fail(*command, cwd=sandbox)

    assert "ValueError: no luck" in printed


def test_the_recipes_of_dagster_send_no_telemetry(sandbox: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    run("uv", "run", "just", "dg", "list", "defs", cwd=sandbox, env=home)
    run("uv", "run", "just", "materialize", "people", cwd=sandbox, env=home)

    assert not [path for path in tmp_path.rglob("*") if "telemetry" in path.name]
    assert not [path for path in sandbox.rglob("*") if path.name == ".telemetry"]
    assert not (sandbox / ".local" / "dagster_home" / "logs" / "event.log").exists()
