"""`just dev` runs Dagster's web page and the local cloud, and reloads after edits."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from conftest import Render, fail, run, start
from dev import DEFINITIONS_LOADED, FUNCTION_STARTED, PATIENCE, Dev, command, running_dev


@pytest.fixture(scope="module")
def dev(render: Render) -> Iterator[Dev]:
    """A project with a running `just dev`."""
    with running_dev(render()) as dev:
        yield dev


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edit_of_the_function_restarts_it(dev: Dev) -> None:
    assert "Cloud function version: development" in dev.materialize("people")

    dev.edit_function("main.py", '"development"', '"edited"')

    assert "Cloud function version: edited" in dev.materialize("people")


def test_an_edit_of_the_package_reloads_the_function_and_the_definitions(dev: Dev) -> None:
    started, loaded = dev.printed.count(FUNCTION_STARTED), dev.printed.count(DEFINITIONS_LOADED)

    with (dev.project / "packages/gcp-pipes/src/gcp_pipes/protocol.py").open("a") as module:
        module.write("\n# edited\n")

    dev.eventually(lambda: dev.printed.count(FUNCTION_STARTED) > started)
    dev.eventually(lambda: dev.printed.count(DEFINITIONS_LOADED) > loaded)


def test_an_edit_of_the_definitions_reloads_them(dev: Dev) -> None:
    [definition] = dev.project.glob("orchestrator/src/*/defs/people.py")

    loaded = dev.printed.count(DEFINITIONS_LOADED)
    edit(definition, '"""Fake people', '"""Invented people')
    dev.eventually(lambda: dev.printed.count(DEFINITIONS_LOADED) > loaded)

    assets = dev.graphql("{ assetNodes { description } }")["assetNodes"]
    assert any(str(asset["description"]).startswith("Invented people") for asset in assets)


def test_an_error_is_reported_and_its_fix_reloads(dev: Dev) -> None:
    main = dev.project / "cloud_function" / "main.py"
    [definition] = dev.project.glob("orchestrator/src/*/defs/people.py")

    for broken in (main, definition):
        edit(broken, "\nimport ", "\nimport no_such_module\nimport ")
    error = "Dagster could not load the definitions."
    dev.eventually(lambda: "No module named" in dev.printed.partition(error)[2])
    dev.eventually(lambda: "Edit it again to restart it" in dev.printed)

    started = dev.printed.count(FUNCTION_STARTED)
    loaded = dev.printed.count(DEFINITIONS_LOADED)
    for broken in (main, definition):
        edit(broken, "\nimport no_such_module\n", "\n")
    dev.eventually(lambda: dev.printed.count(FUNCTION_STARTED) > started)
    # Dagster shows the new definitions before it has replaced the process with the old ones.
    dev.eventually(lambda: dev.printed.count(DEFINITIONS_LOADED) > loaded)

    dev.materialize("people")


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [("deps:", "dep:", 7), ("attributes:", "attribute:", 3)],
    ids=["in attributes", "next to attributes"],
)
def test_an_error_in_yaml_is_reported_by_its_line_and_its_fix_reloads(
    right: str, wrong: str, line: int, dev: Dev
) -> None:
    [definition] = dev.project.glob("orchestrator/src/*/defs/visits/defs.yaml")
    field, meant = wrong.strip(":"), right.strip(":")

    error = "Dagster could not load the definitions."
    failed = dev.printed.count(error)
    edit(definition, right, wrong)
    dev.eventually(lambda: f"{field} is not a field. Did you mean {meant}?" in dev.printed)
    dev.eventually(lambda: f"defs.yaml:{line}: " in dev.printed)
    dev.eventually(lambda: dev.printed.count(error) > failed)  # the reload is over
    loaded = dev.printed.count(DEFINITIONS_LOADED)
    edit(definition, wrong, right)
    dev.eventually(lambda: dev.printed.count(DEFINITIONS_LOADED) > loaded)

    # Dagster has no definitions until it has replaced the process that had none.
    dev.eventually(lambda: "visits" in str(dev.graphql("{ assetNodes { assetKey { path } } }")))


def test_the_tables_are_kept_in_the_project(dev: Dev) -> None:
    dev.materialize("people")

    bucket = dev.address("Data lake").removeprefix("gs://")
    assert (dev.project / ".local" / "buckets" / bucket / "people" / "_delta_log").is_dir()


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "was sent SIGKILL, perhaps since the machine had no memory"),
        ("os._exit(0)", "exited with code 0"),
        ("os._exit(7)", "exited with code 7"),
    ],
    ids=["killed", "exits", "fails"],
)
def test_a_crash_of_the_function_is_reported_and_fails_its_calls_at_once(
    crash: str, reason: str, dev: Dev
) -> None:
    task = "    dl_bucket = event_input(event"
    dev.edit_function("tasks/people.py", task, f"    import os\n\n    {crash}\n{task}")
    started = time.monotonic()

    launched = dev.launch("people")

    assert launched["status"] == "FAILURE"
    assert f"The function ended: its process {reason}" in str(launched["events"])
    assert time.monotonic() - started < 60  # seconds; without a report, it would wait for 310
    dev.eventually(lambda: f"The function ended: its process {reason}" in dev.printed)
    dev.edit_function("tasks/people.py", f"    import os\n\n    {crash}\n{task}", task)
    dev.materialize("people")


def test_a_server_of_the_function_that_ends_is_restarted(dev: Dev) -> None:
    restarted = "The function is restarting  "
    count = dev.printed.count(restarted)
    [server] = [
        process
        for process in psutil.Process(dev.process.pid).children(recursive=True)
        if re.search("uv run .*functions-framework", command(process))
    ]

    server.kill()

    dev.eventually(lambda: dev.printed.count(restarted) > count)
    assert "The function ended: its server ended with status -9." in dev.printed
    dev.materialize("people")


def test_a_run_prints_a_line_for_each_step_and_one_for_itself(dev: Dev) -> None:
    before = len(dev.printed)

    launched = dev.launch("people")

    name = f"run {launched['runId'][:8]}"
    dev.eventually(lambda: f"{name} succeeded" in dev.printed)
    lines = [line for line in dev.printed[before:].splitlines() if name in line or "DEBUG" in line]
    assert [re.sub(r"\d+", "N", line.replace(name, "RUN")) for line in lines] == [
        "N:N:N RUN: people succeeded (N s)",
        "N:N:N RUN succeeded (N s)",
    ]


def test_the_addresses_are_printed_again_after_a_reload(dev: Dev) -> None:
    address = f"Dagster         {dev.address('Dagster')}\n"
    count = dev.printed.count(address)

    dev.edit_function("main.py", "Run the task of a request", "Do the task of a request")

    dev.eventually(lambda: dev.printed.count(address) > count)


def test_a_second_dev_names_the_first(dev: Dev) -> None:
    printed = fail("uv", "run", "just", "dev", cwd=dev.project)

    assert f"`just dev` of this project is running already: {dev.address('Dagster')}." in printed


def test_a_port_of_another_process_is_an_error(dev: Dev, project: Path) -> None:
    port = str(urlsplit(dev.address("Dagster")).port)

    printed = fail("uv", "run", "just", "dev", "--port", port, cwd=project)

    assert f"Port {port} is in use by another process. Stop it, or choose another port" in printed


def test_an_asset_is_materialized_from_the_terminal_with_the_running_dev(dev: Dev) -> None:
    people = run("uv", "run", "just", "materialize", "people", cwd=dev.project).stdout

    assert f"Uses the running `just dev`: {dev.address('Dagster')}" in people
    assert "INFO     Writing 1000 rows" in people
    assert "dagster/row_count" in people

    command = (
        "uv",
        "run",
        "just",
        "materialize",
        "visits",
        "--partitions",
        "2026-01-01..2026-01-03",
    )
    visits = run(*command, cwd=dev.project).stdout

    assert "visits, partition 2026-01-03 (of 3 materialized)" in visits
    assert "The check visits:visitors_are_known passed." in visits
    assert dev.partition_counts("visits")["numMaterialized"] == 3


def test_a_server_that_ends_is_reported_and_stops_everything(dev: Dev) -> None:
    [emulator] = [
        process
        for process in psutil.Process(dev.process.pid).children(recursive=True)
        if re.match(r"\S*fake-gcs-server", command(process))
    ]

    emulator.kill()

    assert dev.process.wait(120) == 1
    dev.stop()
    assert "Failed: The storage emulator ended" in dev.printed


def test_a_run_that_a_crash_interrupted_is_canceled_at_the_next_start(render: Render) -> None:
    project = render()
    task = "    dl_bucket = event_input(event"
    sleeping = f"    import time\n\n    time.sleep(600)\n{task}"
    edit(project / "cloud_function/tasks/people.py", task, sleeping)
    with running_dev(project) as dev:
        run_id = dev.submit("people")
        dev.eventually(lambda: dev.status(run_id) == "STARTED")
        for process in psutil.Process(dev.process.pid).children(recursive=True):
            if re.search("dagster|spawn_main", command(process)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        assert dev.process.wait(120) == 1

    with running_dev(project) as dev:
        assert dev.status(run_id) == "CANCELED"
        assert f"run {run_id[:8]} was interrupted when Dagster ended" in dev.printed


@pytest.mark.parametrize("settings", ["LAKE_URI=gs://the-real-lake", "FUNCTION_URL=", "LAKE_URI"])
def test_a_lake_without_a_function_to_call_is_rejected(settings: str, render: Render) -> None:
    project = render()
    (project / "orchestrator" / ".env").write_text(settings)

    with start("uv", "run", "just", "dev", cwd=project) as process:
        printed, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == 1
    assert "orchestrator/.env does not name the function to call." in printed
