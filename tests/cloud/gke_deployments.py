"""Deployments of Dagster to a cluster, with a stand-in for Helm: runs in a project's environment.

    python gke_deployments.py

Prints a JSON object with the result of each. Images are not built.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deployment.gke
from deployment.environments import find_environment
from deployment.errors import DeploymentError
from google_cloud import error
from google_stand_ins import Google, Request, Response, google_stand_ins, service_account_key

IMAGE = (
    f"europe-west4-docker.pkg.dev/my-gcp-project/my-data-platform/orchestrator@sha256:{'a' * 64}"
)
SERVER = "https://gke-abc.europe-west4.gke.goog"
NO_KIND = 'Error: unable to build: no matches for kind "SecretSync" in version "v1"'
HELM = """#!{python}
import json, os, sys
from pathlib import Path
call = {{"arguments": sys.argv[1:], "values": json.load(sys.stdin)}}
call["environment"] = dict(os.environ)
calls = Path({calls!r})
calls.write_text(calls.read_text() + json.dumps(call) + "\\n")
is_failing = {failing!r} in sys.argv and calls.read_text().count("\\n") <= {failures}
if is_failing:
    print({says!r}, file=sys.stderr)
sys.exit(is_failing)
"""


def described(*secrets: str) -> Response:
    """What infra/ knows of a cluster, with these secrets of Dagster."""
    namespace = {
        "account": "dagster@example.com",
        "deployer": "",
        "domain": "",
        "project": "my-gcp-project",
        "secrets": secrets,
    }
    return Response(
        200,
        {
            "server": SERVER,
            "namespace": namespace,
            "settings": {"LAKE_URI": "gs://lake", "DAGSTER_LOGS_BUCKET": "logs"},
            "values": {"postgresql": {"postgresqlHost": "10.1.0.2"}},
        },
    )


@dataclass
class Scenario:
    """What a deployment meets.

    Attributes:
        options: Those of the command line.
        response: The response to the request for what infra/ knows of the cluster.
        failing: An argument of Helm with which it fails.
        failures: How often it fails.
        errors: What it prints then.
        has_helm: Whether Helm is installed.
        has_lock: Whether orchestrator/ has a lock file.
    """

    options: list[str] = field(default_factory=list)
    response: Response = field(default_factory=described)
    failing: str = "nothing"
    failures: int = 1
    errors: str = "Error: that is forbidden"
    has_helm: bool = True
    has_lock: bool = True


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "code": Scenario,
    "all": lambda: Scenario(options=["--namespace"]),
    "secrets": lambda: Scenario(response=described("ALERT_WEBHOOK")),
    "no helm": lambda: Scenario(has_helm=False),
    "no lock": lambda: Scenario(has_lock=False),
    "no cluster": lambda: Scenario(response=error(404, "No such object: dagster.json")),
    "no rights": lambda: Scenario(options=["--namespace"], failing="namespace"),
    "new cluster": lambda: Scenario(
        options=["--namespace"], failing="namespace", failures=2, errors=NO_KIND
    ),
    "other cluster": lambda: Scenario(
        options=["--namespace"], failing="namespace", failures=99, errors=NO_KIND
    ),
    "killed before": lambda: Scenario(
        failing="--atomic",
        errors="Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress",
    ),
    "not ready": lambda: Scenario(failing="--atomic"),
}


def deploy(google: Google, scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Deploy to nprod; what it says, and the calls of Helm."""
    calls, programs, lock = folder / "calls", folder / "bin", folder / "uv.lock"
    calls.write_text("")
    programs.mkdir()
    if scenario.has_helm:
        program = programs / "helm"
        program.write_text(
            HELM.format(
                python=sys.executable,
                calls=str(calls),
                failing=scenario.failing,
                failures=scenario.failures,
                says=scenario.errors,
            )
        )
        program.chmod(0o755)
    if scenario.has_lock:
        lock.write_text('[[package]]\nname = "dagster"\nversion = "1.13.5"\n')
    os.environ["PATH"] = str(programs)
    deployment.gke.ORCHESTRATOR = folder  # type: ignore[attr-defined]
    sys.argv = ["gke", "nprod", *scenario.options]

    def serve(request: Request) -> Response:
        assert request.path.startswith(
            "/storage/v1/b/my-gcp-project-function-sources/o/dagster.json"
        )
        assert request.query == {"alt": "media"}
        return scenario.response

    google.hosts = {"storage.googleapis.com": serve, "oauth2.googleapis.com": google.issue_token}
    try:
        deployment.gke.deploy_dagster(find_environment("nprod"))
        says = "deployed"
    except DeploymentError as failure:
        says = str(failure)
    return {"says": says, "calls": [json.loads(line) for line in calls.read_text().splitlines()]}


def main() -> None:
    """Run the deployments, and print their results."""
    deployment.gke.orchestrator_image = lambda *_: IMAGE  # type: ignore[attr-defined]
    deployment.gke._INTERVAL, deployment.gke._KINDS_TIMEOUT = 1, 3
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key.json").write_text(json.dumps(service_account_key()))
        with google_stand_ins(folder, "storage.googleapis.com") as google:
            os.environ |= google.settings
            os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(folder / "key.json")
            output, sys.stdout = sys.stdout, sys.stderr
            for number, (title, make) in enumerate(SCENARIOS.items()):
                place = folder / str(number)
                place.mkdir()
                results[title] = deploy(google, make(), place)
            sys.stdout = output
    print(json.dumps(results))


if __name__ == "__main__":
    main()
