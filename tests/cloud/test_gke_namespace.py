"""The chart of the namespace of Dagster gives the least rights. Helm itself renders it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Render, run

HELM = ("uv", "run", "--no-project", "--with=helm-python-sdk>=0.2,<0.3", "python", "-c")
RENDER = """
import json, sys
import helm_python as helm

with helm.Chart.load(sys.argv[1]) as chart:
    print(json.dumps(chart.render(json.loads(sys.argv[2]), name="namespace", namespace="dagster")))
"""
ACCOUNT = "people-orchestrator@my-gcp-project.iam.gserviceaccount.com"
DEPLOYER = "people-deployer@my-gcp-project.iam.gserviceaccount.com"

Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def chart(render: Render) -> Path:
    return render({"orchestrator": "gke"}) / "infra" / "kubernetes"


def install(chart: Path, values: Mapping[str, Any]) -> Objects:
    """What the chart creates, by kind and name."""
    printed = run(*HELM, RENDER, str(chart), json.dumps(values), cwd=chart).stdout
    texts = json.loads(printed.splitlines()[-1]).values()
    objects = [each for text in texts for each in yaml.safe_load_all(text) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


@pytest.fixture(scope="module")
def all_of_it(chart: Path) -> Objects:
    values = {
        "account": ACCOUNT,
        "deployer": DEPLOYER,
        "domain": "dagster.example.com",
        "project": "my-gcp-project",
        "secrets": ["ALERT_WEBHOOK", "yes"],
    }
    return install(chart, values)


def rights(role: Mapping[str, Any]) -> dict[str, set[str]]:
    """The verbs of a role, by resource."""
    return {
        resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]
    }


def test_pods_act_as_dagster_s_account(all_of_it: Objects) -> None:
    account = all_of_it["ServiceAccount", "dagster"]

    assert account["metadata"]["annotations"] == {"iam.gke.io/gcp-service-account": ACCOUNT}


def test_dagster_may_only_manage_its_runs(all_of_it: Objects) -> None:
    look = {"get", "list", "watch"}

    assert rights(all_of_it["Role", "dagster"]) == {
        "jobs": {*look, "create", "delete"},
        "jobs/status": {"get"},
        "pods": {*look, "delete"},
        "pods/log": look,
        "pods/status": look,
        "events": look,
    }


def test_the_deployer_may_only_deploy_the_chart(all_of_it: Objects) -> None:
    look = {"get", "list", "watch"}
    change = {*look, "create", "update", "patch", "delete"}

    assert rights(all_of_it["Role", "deployer"]) == {
        **dict.fromkeys(("configmaps", "services", "deployments", "ingresses"), change),
        **dict.fromkeys(("pods", "events", "replicasets"), look),
    }
    [subject] = all_of_it["RoleBinding", "deployer"]["subjects"]
    assert (subject["kind"], subject["name"]) == ("User", DEPLOYER)


def test_only_the_load_balancer_reaches_the_page_and_it_asks_identity_aware_proxy(
    all_of_it: Objects,
) -> None:
    assert all_of_it["BackendConfig", "dagster-webserver"]["spec"]["iap"] == {"enabled": True}
    [inside] = all_of_it["NetworkPolicy", "only-this-namespace"]["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    [outside] = all_of_it["NetworkPolicy", "load-balancer"]["spec"]["ingress"]
    ranges = [each["ipBlock"]["cidr"] for each in outside["from"]]
    assert ranges == ["130.211.0.0/22", "35.191.0.0/16"]
    assert outside["ports"] == [{"port": 3000, "protocol": "TCP"}]


def test_secrets_are_copied_by_an_account_that_dagster_does_not_have(all_of_it: Objects) -> None:
    account = all_of_it["ServiceAccount", "secrets"]
    assert "annotations" not in account["metadata"]
    provider = all_of_it["SecretProviderClass", "dagster"]["spec"]
    assert provider["provider"] == "gke"
    assert yaml.safe_load(provider["parameters"]["secrets"]) == [
        {
            "resourceName": f"projects/my-gcp-project/secrets/{name}/versions/latest",
            "path": name,
        }
        for name in ("ALERT_WEBHOOK", "yes")
    ]
    sync = all_of_it["SecretSync", "dagster-secrets"]["spec"]
    assert (sync["serviceAccountName"], sync["secretProviderClassName"]) == (
        "secrets",
        "dagster",
    )
    assert sync["secretObject"] == {
        "type": "Opaque",
        "data": [{"sourcePath": name, "targetKey": name} for name in ("ALERT_WEBHOOK", "yes")],
    }


def test_what_is_not_asked_for_is_not_created(chart: Path) -> None:
    objects = install(chart, {"account": ACCOUNT, "deployer": "", "domain": "", "secrets": []})

    assert not any("deployer" in name for _, name in objects)
    kinds = {kind for kind, _ in objects}
    assert not kinds & {"ManagedCertificate", "SecretProviderClass", "SecretSync"}
