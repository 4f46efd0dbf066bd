"""What runs no tasks leaves no trace in a project."""

import re

import pytest
from checks import contents
from conftest import FUNCTIONS_AND_JOBS, JOBS_ALONE, Render

FUNCTIONS = re.compile("function|gcf", re.IGNORECASE)
JOBS = re.compile(
    r"(?i:cloud.?run.?job|job_(client|settings))|JOB_NAME|job_name +=|jobs\.|\bjob\.(py|tf)|cloud_function/Dockerfile"
)
DAGSTER_PLUS = re.compile(
    r"dagster.cloud|dagster.plus|Dagster\+|branch.deployment|container_context|build\.yaml", re.IGNORECASE
)
OWN_DATABASE = re.compile(r"postgres|\bjust prod\b|_prod\b|local_cloud.prod|production/", re.IGNORECASE)
VM = re.compile(
    r"compute_(instance|firewall)|compute\.instances|iap|cos-cloud|dagster_users|\bvm\.(tf|py)|production/prepare",
    re.IGNORECASE,
)
DATABASE = re.compile(r"google_sql|sqladmin|cloudsql|google_compute_network|(database|network)\.tf")

DELIVERIES: list[dict[str, object]] = [
    {},
    {"ci": "gitlab", "editor": "none"},
    {"iac": "none", "ci": "none"},
    {"orchestrator": "dagster_plus"},
    {"orchestrator": "dagster_plus", "ci": "gitlab"},
]


def traces(pattern: re.Pattern[str], files: dict[str, str]) -> list[str]:
    """The places where a pattern occurs, but for the package, which is the same for all."""
    return [
        f"{name}: {line}"
        for name, text in files.items()
        if not name.startswith("packages/")
        for line in (name, *text.splitlines())
        if pattern.search(line)
    ]


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_jobs_alone_leave_no_trace_of_functions(
    delivery: dict[str, object], render: Render
) -> None:
    assert traces(FUNCTIONS, contents(render({**JOBS_ALONE, **delivery}))) == []


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_functions_alone_leave_no_trace_of_jobs(
    delivery: dict[str, object], render: Render
) -> None:
    assert traces(JOBS, contents(render(delivery))) == []


@pytest.mark.parametrize("delivery", [*DELIVERIES, JOBS_ALONE])
def test_without_a_vm_there_is_no_trace_of_it(
    delivery: dict[str, object], render: Render
) -> None:
    files = contents(render(delivery))

    assert traces(VM, files) == []
    assert traces(DATABASE, files) == []


def test_jobs_alone_leave_no_trace_of_functions_on_a_vm(render: Render) -> None:
    files = contents(render({**JOBS_ALONE, "orchestrator": "vm"}))

    assert traces(FUNCTIONS, files) == []
    assert len(traces(VM, files)) > 50
    assert len(traces(DATABASE, files)) > 20


def test_functions_alone_leave_no_trace_of_jobs_on_a_vm(render: Render) -> None:
    assert traces(JOBS, contents(render({"orchestrator": "vm"}))) == []


def test_the_traces_of_both_are_found(render: Render) -> None:
    files = contents(render(FUNCTIONS_AND_JOBS))

    assert len(traces(FUNCTIONS, files)) > 100
    assert len(traces(JOBS, files)) > 50


@pytest.mark.parametrize("ci", ["github", "gitlab", "none"])
def test_another_place_for_dagster_leaves_no_trace_of_dagster_plus(ci: str, render: Render) -> None:
    for orchestrator in ("none", "vm", "gke"):
        files = contents(render({"orchestrator": orchestrator, "ci": ci}))
        del files[".copier-answers.yml"]
        assert traces(DAGSTER_PLUS, files) == []


@pytest.mark.parametrize("ci", ["github", "gitlab", "none"])
def test_dagster_plus_leaves_no_trace_of_a_database_of_your_own(ci: str, render: Render) -> None:
    files = contents(render({"orchestrator": "dagster_plus", "ci": ci}))

    assert traces(OWN_DATABASE, files) == []
    assert len(traces(DAGSTER_PLUS, files)) > 20
