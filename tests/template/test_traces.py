"""What runs no tasks leaves no trace in a project."""

import re

import pytest
from checks import contents
from conftest import FUNCTIONS_AND_JOBS, JOBS_ALONE, Render

FUNCTIONS = re.compile("function|gcf", re.IGNORECASE)
JOBS = re.compile(
    r"(?i:cloud.?run.?job|job_(client|settings))|JOB_NAME|job_name +=|jobs\.|\bjob\.(py|tf)|cloud_function/Dockerfile"
)

GKE = re.compile(r"(?i:gke|kubernetes|helm|k8s|kubectl|autopilot)|\bpods?\b")
OTHER_PLACES = re.compile(r"(?i:auth proxy|compute engine|cloud-init|dagster\+|dagster_plus)|\bVM\b")

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


@pytest.mark.parametrize("place", ["none", "vm", "dagster_plus"])
def test_other_places_leave_no_trace_of_gke(place: str, render: Render) -> None:
    files = contents(render({"orchestrator": place}))
    del files[".copier-answers.yml"]  # which has the path of this repository

    assert traces(GKE, files) == []


def test_gke_leaves_no_trace_of_other_places(render: Render) -> None:
    files = contents(render({"orchestrator": "gke"}))
    del files[".copier-answers.yml"]

    assert traces(OTHER_PLACES, files) == []
    assert len(traces(GKE, files)) > 50


def test_the_traces_of_both_are_found(render: Render) -> None:
    files = contents(render(FUNCTIONS_AND_JOBS))

    assert len(traces(FUNCTIONS, files)) > 100
    assert len(traces(JOBS, files)) > 50
