"""A deployment installs Dagster's chart with the image, or says why not."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, Render, run_with_google

IMAGE = "europe-west4-docker.pkg.dev/my-gcp-project/my-data-platform/orchestrator"

# What a deployment says, and how often it calls Helm.
EXPECTED = {
    "code": ("deployed", 1),
    "all": ("deployed", 2),
    "secrets": ("deployed", 1),
    "no helm": ("Helm is not installed: https://helm.sh/docs/intro/install/", 0),
    "no lock": ("does not say which version of Dagster to deploy. Run `uv lock --directory", 0),
    "no cluster": (
        "No such object: dagster.json. The cluster or its bucket for sources does not exist, or "
        "the deployer lacks a role. Run `uv run just deploy nprod`.",
        0,
    ),
    "no rights": ("You need to be an administrator of the cluster", 1),
    "new cluster": ("deployed", 4),
    "killed before": ("an earlier one was killed. In the second case, go back to what ran", 1),
    "not ready": (
        "Helm could not install Dagster 1.13.5: see above. If it had started, it has restored what "
        "ran before.",
        1,
    ),
}


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    return render({"orchestrator": "gke"})


@pytest.fixture(scope="module")
def results(project: Path) -> dict[str, Any]:
    script = str(TEMPLATE / "tests" / "cloud" / "gke_deployments.py")
    run_with_google(project, "mypy", script)
    printed = run_with_google(project, "python", script)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def test_a_cluster_that_never_knows_all_kinds_of_objects_is_an_error(
    results: dict[str, Any],
) -> None:
    result = results["other cluster"]

    assert "Helm could not prepare the namespace of Dagster" in result["says"]
    assert len(result["calls"]) > 2


@pytest.mark.parametrize("scenario", EXPECTED)
def test_a_deployment_ends_as_expected(scenario: str, results: dict[str, Any]) -> None:
    says, calls = EXPECTED[scenario]

    assert says in results[scenario]["says"]
    assert len(results[scenario]["calls"]) == calls


def set_by(call: dict[str, Any]) -> dict[str, Any]:
    """The values that a call of Helm sets in lists."""
    options = [each for each in call["arguments"] if each.startswith("--set-json=")]
    pairs = (each.removeprefix("--set-json=").partition("=") for each in options)
    return {name: json.loads(value) for name, _, value in pairs}


def test_dagster_s_chart_has_the_locked_version_the_image_and_the_settings(
    project: Path, results: dict[str, Any]
) -> None:
    [call] = results["code"]["calls"]

    arguments = call["arguments"]
    assert arguments[:3] == ["upgrade", "dagster", "dagster"]
    assert {
        "--install",
        "--namespace=dagster",
        "--repo=https://dagster-io.github.io/helm",
        "--version=1.13.5",
        f"--values={project / 'orchestrator' / 'production' / 'values.yaml'}",
        "--atomic",
        "--wait",
        "--timeout=15m",
    } < set(arguments)
    assert arguments[-1] == "--values=-"
    set_values = set_by(call)
    location = "dagster-user-deployments.deployments[0]"
    image = {
        "repository": f"{IMAGE}@sha256",
        "tag": "a" * 64,
        "pullPolicy": "IfNotPresent",
    }
    annotations = set_values[f"{location}.annotations"]
    assert set_values == {
        f"{location}.image": image,
        f"{location}.initContainers[0].image": f"{IMAGE}@sha256:{'a' * 64}",
        f"{location}.initContainers[0].env": [],
        f"{location}.env": {"LAKE_URI": "gs://lake", "DAGSTER_LOGS_BUCKET": "logs"},
        f"{location}.envSecrets": [],
        f"{location}.annotations": annotations,
    }
    assert call["values"] == {
        "postgresql": {"postgresqlHost": "10.1.0.2"},
        "dagsterWebserver": {"image": image, "annotations": annotations},
        "dagsterDaemon": {"image": image, "annotations": annotations},
        "runLauncher": {"config": {"k8sRunLauncher": {"envSecrets": []}}},
    }


def test_dagster_has_its_secrets_as_environment_variables_and_restarts_for_a_new_one(
    results: dict[str, Any],
) -> None:
    [without], [call] = results["code"]["calls"], results["secrets"]["calls"]

    secrets = [{"name": "dagster-secrets"}]  # which infra/kubernetes/ creates
    location = "dagster-user-deployments.deployments[0]"
    assert set_by(call)[f"{location}.envSecrets"] == secrets
    [waits] = set_by(call)[f"{location}.initContainers[0].env"]
    assert waits == {
        "name": "ALERT_WEBHOOK",
        "valueFrom": {"secretKeyRef": {"name": "dagster-secrets", "key": "ALERT_WEBHOOK"}},
    }
    assert call["values"]["runLauncher"] == {"config": {"k8sRunLauncher": {"envSecrets": secrets}}}
    annotations = f"{location}.annotations"
    assert set_by(call)[annotations].keys() == set_by(without)[annotations].keys()
    assert set_by(call)[annotations] != set_by(without)[annotations]


def test_helm_gets_a_token_and_no_file_with_credentials(results: dict[str, Any]) -> None:
    for call in results["all"]["calls"]:
        environment = call["environment"]
        assert environment["HELM_KUBEAPISERVER"] == "https://gke-abc.europe-west4.gke.goog"
        assert environment["HELM_KUBETOKEN"]
        assert environment["HELM_KUBETOKEN"] not in " ".join(call["arguments"])
        assert environment["KUBECONFIG"] == "/dev/null"


def test_ci_may_change_the_release_of_dagster_and_not_that_of_the_rights(
    results: dict[str, Any],
) -> None:
    namespace, dagster = results["all"]["calls"]

    assert namespace["environment"]["HELM_DRIVER"] == "secret"
    assert dagster["environment"]["HELM_DRIVER"] == "configmap"


def test_the_namespace_is_prepared_before_dagster(project: Path, results: dict[str, Any]) -> None:
    namespace, dagster = results["all"]["calls"]

    chart = str(project / "infra" / "kubernetes")
    assert namespace["arguments"][:3] == ["upgrade", "namespace", chart]
    assert "--create-namespace" in namespace["arguments"]
    assert namespace["values"] == {
        "account": "dagster@example.com",
        "deployer": "",
        "domain": "",
        "project": "my-gcp-project",
        "secrets": [],
    }
    assert dagster["arguments"][:2] == ["upgrade", "dagster"]
