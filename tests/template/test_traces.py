"""What runs no tasks leaves no trace in a project."""

import re

import pytest
from checks import ANSWERS_FILE, contents
from conftest import FUNCTIONS_AND_JOBS, JOBS_ALONE, Render

FUNCTIONS = re.compile("function|gcf", re.IGNORECASE)
JOBS = re.compile(
    r"(?i:cloud.?run.?job|job_(client|settings))|JOB_NAME|job_name +=|jobs\.|\bjob\.(py|tf)|cloud_function/Dockerfile"
)
# What each place where Dagster runs leaves in a project, and nothing else does.
PLACES = {
    "vm": re.compile(
        r"google_compute_(instance|firewall)|compute\.instances|compute engine|cos-cloud|cloud-init"
        r"|auth proxy|\bvm\.(tf|py)|(?-i:\bVM\b)",
        re.IGNORECASE,
    ),
    # An agent of Dagster+ is in a cluster, too: but one that its owner creates, not infra/.
    "gke": re.compile(
        r"google_container|(?<!services enable )container\.googleapis|autopilot|dagster-k8s|k8sRunLauncher|infra/kubernetes|folder kubernetes/"
        r"|production/values|deployment.gke|\bgke\.(tf|py)",
        re.IGNORECASE,
    ),
    "dagster_plus": re.compile(
        r"dagster.cloud|dagster.plus|Dagster\+|branch.deployment|container_context|build\.yaml",
        re.IGNORECASE,
    ),
}
OF_DATABASE = re.compile(
    r"google_sql|sqladmin|cloudsql|google_compute_network|(database|network)\.tf|\biap\b|dagster_users",
    re.IGNORECASE,
)
OF_INSTANCE = re.compile(r"postgres|\bjust prod\b|_prod\b|local_cloud.prod|production/", re.IGNORECASE)

DELIVERIES: list[dict[str, object]] = [
    {},
    {"ci": "gitlab", "editor": "none"},
    {"iac": "none", "ci": "none"},
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


@pytest.mark.parametrize("place", ["vm", "gke", "dagster_plus"])
def test_functions_or_jobs_alone_leave_no_trace_of_the_other_where_dagster_runs(
    place: str, render: Render
) -> None:
    where = {"orchestrator": place}

    assert traces(JOBS, contents(render(where))) == []
    assert traces(FUNCTIONS, contents(render({**JOBS_ALONE, **where}))) == []


@pytest.mark.parametrize("place", ["none", *PLACES])
@pytest.mark.parametrize("ci", ["github", "gitlab", "none"])
def test_a_place_for_dagster_leaves_no_trace_of_the_others(
    place: str, ci: str, render: Render
) -> None:
    files = contents(render({"orchestrator": place, "ci": ci}))
    del files[ANSWERS_FILE]  # which has the path of this repository

    for other, pattern in PLACES.items():
        found = traces(pattern, files)
        assert len(found) > 20 if other == place else found == []
    assert bool(traces(OF_DATABASE, files)) == (place in ("vm", "gke"))
    assert bool(traces(OF_INSTANCE, files)) == (place != "dagster_plus")


def test_the_traces_of_both_are_found(render: Render) -> None:
    files = contents(render(FUNCTIONS_AND_JOBS))

    assert len(traces(FUNCTIONS, files)) > 100
    assert len(traces(JOBS, files)) > 50
