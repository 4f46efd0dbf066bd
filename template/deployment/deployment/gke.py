"""Deploys Dagster to the cluster of an environment: `just deploy-dagster ENVIRONMENT`.

It builds the image, and installs Dagster's Helm chart with it. `just deploy` and CI run this. It
only needs the roles of the deployer, in Google Cloud and in the cluster. At an older commit, it
rolls back.

With `--namespace`, as in `just deploy`, it first installs the chart in infra/kubernetes/: the
rights of Dagster and of the deployer, and the ways to Dagster. That takes an administrator of the
cluster.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployment.advice import explained
from deployment.deployer import deployer_api, deployer_credentials, run_deployment
from deployment.environments import INFRA, Environment
from deployment.errors import DeploymentError
from deployment.google import GoogleApi, GoogleError
from deployment.orchestrator import orchestrator_image
from deployment.programs import run_to_end
from deployment.project import ORCHESTRATOR
from google.auth.transport.requests import Request

_HELM = "https://helm.sh/docs/intro/install/"
_CHARTS = "https://dagster-io.github.io/helm"  # Dagster's own
_NAMESPACE = "dagster"
_VALUES = ORCHESTRATOR / "production" / "values.yaml"
_TIMEOUT = "15m"  # a new cluster takes minutes to start nodes
_KINDS_TIMEOUT = 10 * 60  # seconds, for Google to add its kinds of objects to a new cluster
_INTERVAL = 20  # seconds
_SECRETS = "dagster-secrets"  # in the cluster: infra/kubernetes/ creates it
_CODE_LOCATION = "dagster-user-deployments.deployments[0]"


@dataclass(frozen=True)
class Cluster:
    """What infra/ knows of a cluster: the object `dagster.json` in the bucket for sources.

    Attributes:
        server: The URL of its control plane.
        namespace: The values of the chart in infra/kubernetes/.
        settings: The settings of Dagster.
        values: Values of Dagster's chart.
    """

    server: str
    namespace: Mapping[str, Any]
    settings: Mapping[str, str]
    values: Mapping[str, Any]


class _HelmError(Exception):
    """Helm failed, with these errors, which it has also printed."""


def deploy_dagster(environment: Environment) -> None:
    """Build the image, unless it exists, and let Dagster run it.

    Runs in progress go on with the image that they have started with.

    Args:
        environment: The environment.

    Raises:
        DeploymentError: Dagster does not run the image. What ran before goes on.
    """
    if shutil.which("helm") is None:
        raise DeploymentError(f"Helm is not installed: {_HELM}")
    version = chart_version()
    with deployer_api() as api:
        cluster = find_cluster(api, environment)
        if "--namespace" in sys.argv[2:]:
            prepare_namespace(cluster)
        image = orchestrator_image(api, environment)
    _install(environment, cluster, image, version)
    print(f"Dagster {version} in {environment.name} runs {image}", flush=True)


def chart_version() -> str:
    """The version of Dagster's Helm chart: that of Dagster, as it is locked.

    Raises:
        DeploymentError: There is no lock file, or Dagster is not in it.
    """
    lock = ORCHESTRATOR / "uv.lock"
    packages = tomllib.loads(lock.read_text())["package"] if lock.exists() else []
    for package in packages:
        if package["name"] == "dagster":
            return str(package["version"])
    raise DeploymentError(
        f"{ORCHESTRATOR.name}/uv.lock does not say which version of Dagster to deploy. Run "
        f"`uv lock --directory {ORCHESTRATOR.name}`, and commit the file."
    )


def find_cluster(api: GoogleApi, environment: Environment) -> Cluster:
    """Read what infra/ knows of the cluster of an environment.

    Args:
        api: Sends the request, with the credentials of the deployer or of a user with its roles.
        environment: The environment.

    Raises:
        DeploymentError: There is no cluster yet, or its description cannot be read.
    """
    bucket = environment["sources_bucket"]
    url = f"https://storage.googleapis.com/storage/v1/b/{bucket}/o/dagster.json"
    try:
        return Cluster(**api.request("GET", url, params={"alt": "media"}))
    except GoogleError as error:
        raise explained(error, "cluster", environment) from error


def prepare_namespace(cluster: Cluster) -> None:
    """Create the namespace of Dagster, with the rights in it.

    Args:
        cluster: The cluster.

    Raises:
        DeploymentError: That failed.
    """
    chart = str(INFRA / "kubernetes")
    options = ("--create-namespace", f"--timeout={_TIMEOUT}")
    deadline = time.monotonic() + _KINDS_TIMEOUT
    while True:
        try:
            return _helm(cluster, "namespace", chart, *options, values=cluster.namespace)
        except _HelmError as error:
            if "no matches for kind" not in str(error) or time.monotonic() > deadline:
                raise DeploymentError(
                    "Helm could not prepare the namespace of Dagster: see above. You need to be an "
                    "administrator of the cluster, such as by roles/container.admin."
                ) from error
        print("A new cluster does not know all kinds of objects yet. Trying again.", flush=True)
        time.sleep(_INTERVAL)


def _install(environment: Environment, cluster: Cluster, image: str, version: str) -> None:
    """Install Dagster's chart, or upgrade it, and wait until all is ready."""
    repository, tag = image.rsplit(":", 1)  # of NAME@sha256:DIGEST: the chart joins them again
    parts = {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"}
    names = cluster.namespace["secrets"]
    secrets = [{"name": _SECRETS}] if names else []
    # The first container names each secret, so that it does not start before all are copied.
    each_secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": _SECRETS, "key": name}}}
        for name in names
    ]
    # A change of the settings or of the secrets' names alone must restart them, too.
    settings = json.dumps([cluster.settings, names], sort_keys=True)
    annotations = {"checksum/settings": hashlib.sha256(settings.encode()).hexdigest()}
    lists = {
        f"{_CODE_LOCATION}.image": parts,
        f"{_CODE_LOCATION}.initContainers[0].image": image,
        f"{_CODE_LOCATION}.initContainers[0].env": each_secret,
        f"{_CODE_LOCATION}.env": cluster.settings,
        f"{_CODE_LOCATION}.envSecrets": secrets,
        f"{_CODE_LOCATION}.annotations": annotations,
    }
    values = {
        **cluster.values,
        "runLauncher": {"config": {"k8sRunLauncher": {"envSecrets": secrets}}},
        "dagsterWebserver": {"image": parts, "annotations": annotations},
        "dagsterDaemon": {"image": parts, "annotations": annotations},
    }
    try:
        _helm(
            cluster,
            "dagster",
            "dagster",
            f"--repo={_CHARTS}",
            f"--version={version}",
            f"--values={_VALUES}",
            "--atomic",
            "--wait",
            f"--timeout={_TIMEOUT}",
            *(f"--set-json={name}={json.dumps(value)}" for name, value in lists.items()),
            values=values,
        )
    except _HelmError as error:
        if "another operation" in str(error):
            raise DeploymentError(
                "Another deployment is running, or an earlier one was killed. In the second case, "
                "go back to what ran before it, and deploy again: HELM_DRIVER=configmap helm "
                "--namespace=dagster rollback dagster (if it was the first one: uninstall dagster)."
            ) from error
        project = environment["project_id"]
        raise DeploymentError(
            f"Helm could not install Dagster {version}: see above. If it had started, it has "
            "restored what ran before. The events of the pods and the logs of the containers say "
            "why pods did not become ready; `migrate` is the container that changes the database, "
            "and waits for dagster_secrets: "
            f"https://console.cloud.google.com/kubernetes/workload/overview?project={project}"
        ) from error


def _helm(
    cluster: Cluster, release: str, chart: str, *options: str, values: Mapping[str, Any]
) -> None:
    """Install a chart, or upgrade it.

    Helm gets a short-lived token, by its environment, and no file with credentials. It keeps what
    it has installed in secrets, which CI may not read or change; for what CI installs, in config
    maps.

    Raises:
        _HelmError: That failed.
    """
    credentials = deployer_credentials()
    credentials.refresh(Request())
    command = ("helm", "upgrade", release, chart, "--install", f"--namespace={_NAMESPACE}")
    environment = {
        **os.environ,
        "KUBECONFIG": os.devnull,
        "HELM_DRIVER": "secret" if release == "namespace" else "configmap",
        "HELM_KUBEAPISERVER": cluster.server,
        "HELM_KUBETOKEN": str(credentials.token),
    }
    status, errors = run_to_end(
        [*command, *options, "--values=-"], text=json.dumps(values), environment=environment
    )
    if status != 0:
        raise _HelmError(errors)


if __name__ == "__main__":
    sys.exit(run_deployment(deploy_dagster))
