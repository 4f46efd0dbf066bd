"""The recipes around Terraform: a first deployment gets through, or says what to do.

Terraform itself cannot deploy here, since its provider reaches only the real Google. A program in
its place prints what it printed in live projects, and says what it was called with.
"""

import json
import os
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Render, end, run, start
from google_cloud import HOSTS, Cloud, Fault, error
from google_stand_ins import Google, Response, google_stand_ins, service_account_key

# Terraform breaks its lines to the width of the terminal.
REPOSITORY = """
│ Error: Error creating function: googleapi: Error 400: Could not create Cloud Run service x. Unable
│ to retrieve the repository metadata for projects/p/locations/r/repositories/x. Ensure that the
│ Cloud Functions service account has the permission.
"""
BUCKET = """
│ Error: Error waiting to create function: Build failed with status: FAILURE. Access to bucket
│ gcf-v2-sources-1-europe-west4 denied. You must grant Storage Object Viewer permission to x@y.
"""
FORBIDDEN = """
│ Error: Error creating function: googleapi: Error 403: Permission 'run.services.setIamPolicy'
│ denied on resource.
"""
INVALID = """
│ Error: Error creating Bucket: googleapi: Error 409: The requested bucket name is not available.
"""
NEW_ROLE = 'google_storage_bucket_iam_member.function_uses_lake["cloud_function"]'

TERRAFORM = """#!/bin/sh
folder=$(dirname "$0")
echo "$@" >> "$folder/calls"
case "$2" in
    state) cat "$folder/resources" 2>/dev/null || exit 1 ;;
    output) cat "$folder/settings" || exit 1 ;;
    apply)
        trap 'touch "$folder/saved"; exit 1' INT
        echo "$4" | grep -q approve || echo asked >> "$folder/asked"
        if test -f "$folder/errors"; then
            cat "$folder/errors" >&2
            mv "$folder/errors" "$folder/former_errors"
            echo "$RESOURCES" > "$folder/resources"
            exit 1
        fi
        test -z "$WAIT" && exit
        sleep 60 > /dev/null 2>&1 &
        wait $!
        ;;
esac
"""


@dataclass
class Terraform:
    """The program in place of Terraform.

    Attributes:
        folder: The folder to start it from.
    """

    folder: Path

    def calls(self, subcommand: str) -> list[str]:
        """The options of each call of a subcommand."""
        lines = (self.folder / "calls").read_text().splitlines()
        parts = [line.split(maxsplit=2) for line in lines]
        return ["".join(rest) for _, name, *rest in parts if name == subcommand]

    def fails_once(self, errors: str) -> None:
        """Let the next `apply` fail."""
        (self.folder / "errors").write_text(errors)


@pytest.fixture
def terraform(tmp_path: Path) -> Terraform:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "terraform").write_text(TERRAFORM)
    (folder / "terraform").chmod(0o755)
    return Terraform(folder)


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def google(tmp_path: Path, cloud: Cloud, terraform: Terraform) -> Iterator[Google]:
    """Google's servers, credentials for them, and the program in place of Terraform."""
    with google_stand_ins(tmp_path, *HOSTS) as google:
        google.hosts = cloud.hosts()
        (tmp_path / "key.json").write_text(json.dumps(service_account_key()))
        google.settings |= {
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
            "PATH": f"{terraform.folder}:{os.environ['PATH']}",
            "UV_OFFLINE": "true",  # the proxy has no packages
        }
        yield google


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    project = render()
    run("uv", "lock", cwd=project / "cloud_function")
    run("uv", "run", "just", "bundle", cwd=project)
    return project


def just(project: Path, google: Google, *recipe: str, **settings: str) -> tuple[int, str]:
    """The exit status of a recipe, and what it printed."""
    command = ("uv", "run", "just", *recipe)
    return end(*command, cwd=project, env={**google.settings, **settings}, timeout=60)


# `just deploy nprod`, with a shorter wait for Google.
DEPLOY = """
import sys
from deployment import environments, recipes
sys.exit(recipes.deploy(environments.find_environment("nprod"), wait=0.1))
"""


def deploy(project: Path, google: Google, resources: str = "") -> tuple[int, str]:
    """The exit status of a deployment, and what it printed.

    Args:
        project: The project.
        google: Google's servers.
        resources: The resources in the state after `apply` has failed.
    """
    environment = {**google.settings, "RESOURCES": resources}
    return end("uv", "run", "python", "-c", DEPLOY, cwd=project, env=environment, timeout=60)


@contextmanager
def deploying(
    project: Path, google: Google, terraform: Terraform
) -> "Iterator[subprocess.Popen[str]]":
    """Deploy during the block. After it, press Ctrl-C, and wait until the deployment has ended."""
    process = start(
        *("uv", "run", "just", "deploy", "nprod"), cwd=project, env={**google.settings, "WAIT": "1"}
    )
    deadline = time.monotonic() + 60
    try:
        while not (terraform.folder / "asked").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        (REPOSITORY, "because Cloud Functions may not use the repository of images yet."),
        (BUCKET, "because the build account may not read the sources yet."),
        (FORBIDDEN, "because Google rejected a request (403) minutes after roles were granted."),
    ],
)
def test_a_first_deployment_that_fails_while_roles_become_effective_is_repeated_once(
    errors: str, reason: str, project: Path, google: Google, terraform: Terraform
) -> None:
    terraform.fails_once(errors)

    status, printed = deploy(project, google, NEW_ROLE)

    assert status == 0
    assert errors.strip() in printed
    assert reason in printed
    file = f"-var-file={project}/infra/environments/nprod.tfvars"
    assert terraform.calls("apply") == [file, f"-auto-approve {file}"]


@pytest.mark.parametrize(
    ("errors", "resources"),
    [(INVALID, NEW_ROLE), (FORBIDDEN, "google_storage_bucket.lake"), (FORBIDDEN, "")],
)
def test_a_deployment_that_fails_for_another_reason_is_not_repeated(
    errors: str, resources: str, project: Path, google: Google, terraform: Terraform
) -> None:
    terraform.fails_once(errors)

    status, _ = deploy(project, google, resources)

    assert status == 1
    assert len(terraform.calls("apply")) == 1


def test_a_deployment_is_repeated_only_once(
    project: Path, google: Google, terraform: Terraform
) -> None:
    terraform.fails_once(REPOSITORY)
    program = terraform.folder / "terraform"
    program.write_text(program.read_text().replace('mv "$folder/errors"', "cp /dev/null"))

    status, printed = deploy(project, google)

    assert status == 1
    assert len(terraform.calls("apply")) == 2
    assert printed.count("Error creating function") == 2


def test_an_interruption_lets_terraform_save_its_state(
    project: Path, google: Google, terraform: Terraform
) -> None:
    with deploying(project, google, terraform) as process:
        pass

    assert process.returncode == 130
    assert (terraform.folder / "saved").exists()
    assert len(terraform.calls("apply")) == 1


def test_a_deployment_reports_that_it_replaces_other_code(
    project: Path, google: Google, cloud: Cloud
) -> None:
    labels = cloud.functions["my-data-platform"].shown["labels"]
    for bundle, is_reported in (("f" * 63, True), (None, False)):
        labels["bundle"] = bundle
        status, printed = just(project, google, "deploy", "nprod")
        assert status == 0
        text = "my-data-platform in nprod serves other code (ffffffffffff) than that of this"
        assert (text in printed) == is_reported

    run("uv", "run", "just", "bundle", cwd=project)
    printed = run("uv", "run", "just", "bundle", cwd=project).stdout
    labels["bundle"] = printed.strip().rpartition(":")[2][:63]
    assert "serves other code" not in just(project, google, "deploy", "nprod")[1]
    cloud.functions.clear()
    assert just(project, google, "deploy", "nprod")[0] == 0


def test_without_a_login_a_deployment_says_so_before_it_starts_terraform(
    project: Path, google: Google, terraform: Terraform, tmp_path: Path
) -> None:
    logged_out = {"GOOGLE_APPLICATION_CREDENTIALS": "", "NO_GCE_CHECK": "true"}

    status, printed = just(
        project, google, "deploy", "nprod", GCE_METADATA_HOST="", GCE_METADATA_IP="", **logged_out
    )

    assert status == 1
    assert printed.startswith("You are not logged in to Google Cloud. Run: gcloud auth")
    assert "Built the bundles in build/ and validated infra/. Skipped the rest." in printed
    assert terraform.calls("apply") == []


def test_bootstrap_turns_on_the_services_and_creates_the_bucket(
    project: Path, google: Google, cloud: Cloud, terraform: Terraform
) -> None:
    status, printed = just(project, google, "bootstrap", "nprod")

    assert status == 0, printed
    assert {"run.googleapis.com", "sts.googleapis.com"} < cloud.enabled
    assert cloud.identities == {
        f"{name}.googleapis.com"
        for name in ("artifactregistry", "cloudbuild", "cloudfunctions", "run")
    }
    [options] = terraform.calls("apply")
    assert "-var=state_bucket=my-gcp-project-terraform-state" in options


def test_bootstrap_without_the_right_to_turn_on_services_still_creates_the_bucket(
    project: Path, google: Google, cloud: Cloud, terraform: Terraform
) -> None:
    just(project, google, "bootstrap", "nprod")
    cloud.faults = [
        Fault("batchEnable", error(403, "Permission denied."), times=9),
        Fault("generateServiceIdentity", error(403, "Permission denied."), times=9),
    ]

    status, printed = just(project, google, "bootstrap", "nprod")

    assert status == 0  # an administrator has enabled the services
    assert "It was not created (Permission denied.)" in printed
    assert len(terraform.calls("apply")) == 2


def test_two_recipes_do_not_use_terraform_at_the_same_time(
    project: Path, google: Google, terraform: Terraform
) -> None:
    with deploying(project, google, terraform):
        status, printed = just(project, google, "plan", "prod")

    assert status == 1
    assert "plan: Another recipe of this project is using Terraform." in printed
    assert just(project, google, "plan", "prod")[0] == 0


def test_bootstrap_rejects_a_bucket_of_another_project(
    project: Path, google: Google, cloud: Cloud, terraform: Terraform
) -> None:
    cloud.buckets["my-gcp-project-terraform-state"] = Response(200, {"projectNumber": "2"})

    status, printed = just(project, google, "bootstrap", "nprod")

    assert status == 1
    assert "belongs to another project. Choose another name in infra/environments/nprod" in printed


def test_the_readme_names_the_services_that_are_turned_on(project: Path) -> None:
    readme = (project / "infra" / "README.md").read_text()
    [command] = re.findall(r"gcloud services enable --project=.*?\nfor", readme, re.DOTALL)
    expected = tomllib.loads((project / "deployment" / "deployment" / "doctor.toml").read_text())
    terraform = (project / "infra" / "main.tf").read_text()

    names = set(expected["apis"]["names"])
    assert set(re.findall(r"\w+\.googleapis\.com", command)) == names
    assert set(re.findall(r'"(\w+\.googleapis\.com)"', terraform)) == names


def test_bootstrap_uses_a_bucket_that_exists(
    project: Path, google: Google, cloud: Cloud, terraform: Terraform
) -> None:
    cloud.buckets["my-gcp-project-terraform-state"] = Response(200, {"projectNumber": "1"})

    status, printed = just(project, google, "bootstrap", "nprod")

    assert status == 0
    assert "The bucket my-gcp-project-terraform-state exists already." in printed
    assert not (terraform.folder / "calls").exists()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            Fault("GET storage", error(403, "No access.")),
            "my-gcp-project-terraform-state has another owner, or you may not see it (No "
            "access.). Choose another name in infra/environments/nprod.gcs.tfbackend.",
        ),
        (
            Fault("batchEnable", error(403, "Billing account is not open.")),
            "bootstrap: Billing account is not open.",
        ),
        (
            Fault("operations", Response(200, {"done": True, "error": {"message": "No quota."}})),
            "bootstrap: No quota.",
        ),
    ],
)
def test_bootstrap_reports_what_google_rejects(
    fault: Fault, says: str, project: Path, google: Google, cloud: Cloud
) -> None:
    cloud.faults = [fault]

    status, printed = just(project, google, "bootstrap", "nprod")

    assert status == 1
    assert says in printed


SETTINGS = "FUNCTION_URL=https://new.run.app\nLAKE_URI=gs://new\n"


def test_settings_are_printed_or_written_without_losing_others(
    project: Path, google: Google, terraform: Terraform
) -> None:
    (terraform.folder / "settings").write_text(SETTINGS)
    file = project / "orchestrator" / ".env"
    file.write_text("# Mine.\nALERT_WEBHOOK='https://hook'\nLAKE_URI=gs://old\n")
    try:
        assert just(project, google, "settings", "nprod") == (0, SETTINGS)
        assert "LAKE_URI=gs://old" in file.read_text()

        assert just(project, google, "settings", "nprod", "--write")[0] == 0
        assert file.read_text() == (
            "# Mine.\nALERT_WEBHOOK='https://hook'\nLAKE_URI=gs://new\n"
            "FUNCTION_URL=https://new.run.app\n"
        )
    finally:
        file.unlink()


def test_settings_that_cannot_be_read_leave_the_file(
    project: Path, google: Google, terraform: Terraform
) -> None:
    file = project / "orchestrator" / ".env"
    file.write_text("LAKE_URI=gs://old\n")
    try:
        status, printed = just(project, google, "settings", "nprod", "--write")
        unknown = just(project, google, "settings", "nprod", "--right")
        assert file.read_text() == "LAKE_URI=gs://old\n"
    finally:
        file.unlink()

    assert status == 1
    assert "settings: terraform output failed." in printed
    assert unknown[0] == 1
    assert "Unknown option --right. There is: --write" in unknown[1]
