"""infra/ is valid, passes its own tests, and grants only the roles that its README lists."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import FUNCTIONS_AND_JOBS, JOBS_ALONE, Render, initialize, replace, run

# The checks of all projects start first. The other tests run meanwhile.
pytestmark = pytest.mark.usefixtures("all_checks", "resources_with_a_second_function")

# The answers that change the Terraform files. Environments only matter by their number.
COMBINATIONS: dict[str, dict[str, Any]] = {
    "github": {},
    "gitlab, in Dagster+": {
        "ci": "gitlab",
        "environments": "dev, test, live",
        "orchestrator": "dagster_plus",
    },
    "github, with jobs, on GKE": {"orchestrator": "gke", **FUNCTIONS_AND_JOBS},
    "none, with jobs": {"ci": "none", "environments": "solo", **FUNCTIONS_AND_JOBS},
    "gitlab, jobs alone, on a VM": {"ci": "gitlab", "orchestrator": "vm", **JOBS_ALONE},
}

# Gives each binding known values.
PLAN = """
mock_provider "google" {}
mock_provider "time" {}

variables {
  lake_bucket     = "the-lake"
  messages_bucket = "the-messages"
  sources_bucket  = "the-sources"
  logs_bucket     = "the-logs"

  orchestrator_users = ["user:name@example.com"]
  FUNCTIONS
  JOBS
  FEDERATION
  DAGSTER
}

override_data {
  target = data.google_project.project
  values = { number = 1 }
}

override_resource {
  target = google_artifact_registry_repository.images
  values = { name = "the-images" }
}

OVERRIDES

run "apply" {}
"""
ACCOUNT = """
override_resource {{
  target = google_service_account.{target}
  values = {{ name = "the-account-{name}", member = "serviceAccount:{name}" }}
}}
"""
FUNCTIONS = """function_name = "the-function"
  functions = {
    cloud_function = { secrets = ["NAME"] }
    MORE_FUNCTIONS
  }
"""
JOBS = 'job_name = "the-job"\n  jobs = { FOLDER = { secrets = ["NAME"] } }'
DAGSTER = {  # by what it runs on
    "vm": """dagster_users = ["group:name@example.com"]
  dagster_secrets = ["NAME"]""",
    "gke": """dagster_users = ["group:name@example.com"]
  dagster_domain  = "dagster.example.com"
  dagster_secrets = ["NAME"]""",
}
OWN_ROLE = """
override_resource {{
  target = google_project_iam_custom_role.{name}
  values = {{ name = "roles/{name}" }}
}}
"""
FEDERATION = 'git_repository = { id = "1", owner_id = "2" }'
PROVIDER = """
terraform {
  required_providers {
    google = { source = "hashicorp/google" }
  }
}
"""
RESOURCES = {
    "the-lake": "bucket `lake`",
    "the-messages": "bucket `messages`",
    "the-sources": "bucket `sources`",
    "the-logs": "bucket `logs`",
    "gcf-v2-sources-1-europe-west4": "bucket `builds`",
    "the-images": "repository `images`",
    "the-account-function": "account `function`",
    "the-account-job": "account `job`",
    "the-account-build": "account `build`",
    "the-account-deployer": "account `deployer`",
    "the-account-orchestrator": "account `orchestrator`",
}

# To write the logs of builds and of nodes, to start builds, and to connect to a cluster: all belong
# to the project.
ROLES_ON_THE_PROJECT = (
    "roles/logging.logWriter",
    "roles/cloudbuild.builds.editor",
    "roles/container.defaultNodeServiceAccount",
    "roles/connects_to_cluster",
)

# A condition that limits a role on the project to one VM or database.
ONLY_ONE = (
    r"resource.type == '(\w+).googleapis.com/Instance' && resource.name == "
    r"'projects/[\w-]+/(?:zones/europe-west4-b/)?instances/the-(?:function|job)-dagster'"
)
KINDS = {"compute": "VM", "sqladmin": "database"}

GIVES_RIGHTS = re.compile("_iam_(member|binding|policy)$|_acl$|_access_control$")


@dataclass(frozen=True)
class Binding:
    """A role of an account on a resource, in the words of infra/README.md."""

    who: str
    role: str
    on: str


@dataclass(frozen=True)
class Checks:
    """What Terraform says of a project."""

    printed: str  # by `check-infra`
    bindings: Mapping[str, set[Binding]]  # of each environment


@pytest.fixture(scope="module")
def projects(render: Render) -> dict[str, Path]:
    """A project for each combination."""
    return {name: render(answers) for name, answers in COMBINATIONS.items()}


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Runs Terraform in several projects at the same time.

    It mostly waits: after each `run` of a test, it stops each provider, and kills it after seconds
    if that does not know how to end, like those of some mirrors.
    """
    with ThreadPoolExecutor(len(COMBINATIONS) + 1) as pool:
        yield pool


@pytest.fixture(scope="module")
def all_checks(
    pool: ThreadPoolExecutor, projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[Checks]]:
    """The checks of each project."""
    return {
        name: pool.submit(check, project, tmp_path_factory.mktemp("project"))
        for name, project in projects.items()
    }


@pytest.fixture(scope="module")
def resources_with_a_second_function(
    pool: ThreadPoolExecutor, render: Render
) -> Future[list[dict[str, Any]]]:
    """The resources of a project with a second function, of which the checks have passed."""
    project = render()

    def check_and_apply() -> list[dict[str, Any]]:
        infra = project / "infra"
        initialize(infra)
        run("uv", "lock", cwd=project / "cloud_function")
        run("uv", "run", "just", "add-function", "monthly_reports", cwd=project)
        run("uv", "run", "just", "check-infra", cwd=project, timeout=1200)
        return list(apply(infra, "nprod", 'monthly_reports = { memory = "4Gi" }'))

    return pool.submit(check_and_apply)


@pytest.fixture(params=COMBINATIONS)
def combination(request: pytest.FixtureRequest) -> str:
    """The name of a combination."""
    name: str = request.param
    return name


@pytest.fixture
def checks(combination: str, all_checks: dict[str, Future[Checks]]) -> Checks:
    """The checks of the project of this combination, when they have ended."""
    return all_checks[combination].result()


def check(project: Path, folder: Path) -> Checks:
    """Check the infrastructure of a project, and apply each environment with a mock provider.

    A mirror of the providers may know a cluster without what is in its blocks. Then a copy of the
    project has these blocks without their contents: all else is checked.

    Args:
        project: The project, as it is rendered.
        folder: An empty folder for the copy.
    """
    if (project / "infra" / "gke.tf").exists() and not knows_blocks_of_clusters(folder):
        project = shutil.copytree(project, folder / "project")
        empty_blocks_of_cluster(project / "infra")
    infra = project / "infra"
    initialize(infra)
    run("uv", "lock", cwd=project / first_folder(infra))
    printed = run("uv", "run", "just", "check-infra", cwd=project, timeout=1200).stdout
    environments = (file.stem for file in (infra / "environments").glob("*.tfvars"))
    return Checks(printed, {name: bindings(infra, name) for name in environments})


def knows_blocks_of_clusters(folder: Path) -> bool:
    """Whether the provider knows what is in the blocks of a cluster."""
    (folder / "main.tf").write_text(PROVIDER)
    initialize(folder)
    printed = run("terraform", "providers", "schema", "-json", cwd=folder).stdout
    [provider] = json.loads(printed)["provider_schemas"].values()
    cluster = provider["resource_schemas"]["google_container_cluster"]["block"]["block_types"]
    return "attributes" in cluster["release_channel"]["block"]


def empty_blocks_of_cluster(infra: Path) -> None:
    """Take the contents out of the blocks of the cluster, and what reads them."""
    in_block = r"google_container_cluster\.dagster\.\w+\[0\][\w.\[\]]*"
    text = re.sub(
        in_block, "google_container_cluster.dagster.endpoint", (infra / "gke.tf").read_text()
    )
    before, cluster, after = re.split(
        r"(^resource .google_container_cluster.*?^})", text, flags=re.M | re.S
    )
    cluster = re.sub(r"^  (\w+) \{\n.*?^  \}$", r"  \1 {}", cluster, flags=re.M | re.S)
    assert cluster.count(" {}\n") > 3
    (infra / "gke.tf").write_text(before + cluster + after)
    tests = infra / "tests" / "gke.tftest.hcl"
    tests.write_text(re.sub(rf'!?{in_block}( == "[^"]*")?', "true", tests.read_text()))


def apply(infra: Path, environment: str, functions: str = "") -> Iterator[dict[str, Any]]:
    """Apply an environment with a mock provider, and yield its resources.

    Args:
        infra: The folder of the configuration.
        environment: The name of the environment.
        functions: More items of the variable `functions`.
    """
    accounts = re.findall(
        r'^resource "google_service_account" "(\w+)"', all_of(infra), re.MULTILINE
    )
    folder = infra / "planned"
    folder.mkdir(exist_ok=True)
    (folder / "plan.tftest.hcl").write_text(
        PLAN.replace("FEDERATION", FEDERATION if (infra / "federation.tf").exists() else "")
        .replace("FUNCTIONS", FUNCTIONS if (infra / "function.tf").exists() else "", 1)
        .replace("JOBS", JOBS if (infra / "job.tf").exists() else "")
        .replace("MORE_FUNCTIONS", functions)
        .replace("DAGSTER", dagster_variables(infra))
        .replace("OVERRIDES", "".join(map(known_account, accounts)) + own_roles(infra))
        .replace("FOLDER", first_folder(infra))
    )
    printed = run(
        *("terraform", "test", "-json", "-verbose", "-test-directory=planned"),
        f"-var-file=environments/{environment}.tfvars",
        cwd=infra,
    ).stdout
    messages = (json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    [state] = (message["test_state"] for message in messages if message["type"] == "test_state")
    yield from state["root_module"]["resources"]


def first_folder(infra: Path) -> str:
    """The folder with the tasks that the template rendered."""
    return "cloud_function" if (infra / "function.tf").exists() else "cloud_run_job"


def known_account(name: str) -> str:
    """Gives an account known values."""
    target = f'{name}["FOLDER"]' if name in ("function", "job") else name
    return ACCOUNT.format(name=name, target=target)


def own_roles(infra: Path) -> str:
    """Known names for the project's own roles."""
    names = re.findall(r'^resource "google_project_iam_custom_role" "(\w+)"', all_of(infra), re.M)
    return "".join(OWN_ROLE.format(name=name) for name in names)


def dagster_variables(infra: Path) -> str:
    """The variables of what Dagster runs on, if infra/ creates that."""
    return next((text for name, text in DAGSTER.items() if (infra / f"{name}.tf").exists()), "")


def all_of(infra: Path) -> str:
    return "\n".join(path.read_text() for path in infra.glob("*.tf"))


def bindings(infra: Path, environment: str) -> set[Binding]:
    """Every binding of an environment.

    Raises:
        AssertionError: A binding is not on a single bucket, repository, secret, service, account,
            VM or database, and is not one of `ROLES_ON_THE_PROJECT`.
    """
    found = set()
    for resource in apply(infra, environment):
        if GIVES_RIGHTS.search(resource["type"]):
            values = resource["values"]
            found.add(Binding(who(resource), values["role"], on(resource["type"], values)))
    return found


def who(resource: dict[str, Any]) -> str:
    member: str = resource["values"]["member"]
    if member.startswith("principalSet://"):
        return "github" if "repository_id" in member else "gitlab"
    if member == "user:name@example.com":
        return "orchestrator_users"
    if member == "group:name@example.com":
        return "dagster_users"
    if re.fullmatch(r"serviceAccount:[\w-]+\.svc\.id\.goog\[dagster/dagster\]", member):
        return "pods"
    if re.fullmatch(
        r"principal://.*/projects/1/.*/[\w-]+\.svc\.id\.goog/subject/ns/dagster/sa/secrets", member
    ):
        return "secrets"
    return member.removeprefix("serviceAccount:")


def on(kind: str, values: dict[str, Any]) -> str:
    """The resource of a binding."""
    match kind:
        case "google_storage_bucket_iam_member":
            return RESOURCES[values["bucket"]]
        case "google_artifact_registry_repository_iam_member":
            return RESOURCES[values["repository"]]
        case "google_service_account_iam_member":
            return RESOURCES[values["service_account_id"]]
        case "google_cloud_run_v2_service_iam_member":
            assert values["name"] == "the-function"
            return "service `function`"
        case "google_secret_manager_secret_iam_member":
            return f"secret `{values['secret_id']}`"
        case "google_cloudfunctions2_function_iam_member":
            assert values["cloud_function"] == "the-function"
            return "function `function`"
        case "google_cloud_run_v2_job_iam_member":
            assert values["name"] == "the-job"
            return "job `job`"
        case "google_iap_tunnel_instance_iam_member":
            assert values["instance"] in ("the-function-dagster", "the-job-dagster")
            return "VM `dagster`"
        case "google_iap_web_iam_member":
            [condition] = values["condition"]
            assert condition["expression"] == "request.host == 'dagster.example.com'"
            return "project, only the page `dagster`"
        case "google_project_iam_member" if values["condition"]:
            [condition] = values["condition"]
            found = re.fullmatch(ONLY_ONE, condition["expression"])
            assert found, "a role on the project, with a condition of another form"
            return f"project, only the {KINDS[found[1]]} `dagster`"
        case "google_project_iam_member":
            assert values["role"] in ROLES_ON_THE_PROJECT, "a role on the project"
            return "project"
    raise AssertionError(f"{kind} is not on a single bucket, secret, function or account")


def documented_bindings(infra: Path) -> set[Binding]:
    """The table in infra/README.md."""
    rows = re.findall(
        r"^\| `(\w+)` \| `(roles/[\w.]+)` \| "
        r"the (\w+ `\w+`|project(?:, only the \w+ `\w+`)?)",
        (infra / "README.md").read_text(),
        re.MULTILINE,
    )
    return {Binding(*row) for row in rows}


def test_checkov_finds_nothing_and_each_skip_has_a_reason(
    combination: str, projects: dict[str, Path]
) -> None:
    project = projects[combination]
    run(
        *("uv", "tool", "run", "--from=checkov>=3.2,<4", "checkov"),
        *("--directory=.", "--skip-download", "--compact", "--quiet"),
        cwd=project,
    )

    skips = re.findall(r"#checkov:skip=(\w+)(.*)", all_of(project / "infra"))
    assert skips
    assert all(re.match(r":\S+ .*\.$", reason) for _, reason in skips)


PROJECT_BINDING = """
resource "google_project_iam_member" "planted" {
  project = var.project_id
  role    = "roles/viewer"
  member  = google_service_account.function["cloud_function"].member
}
"""


@pytest.fixture
def github_infra(render: Render) -> Path:
    project = render()
    infra = project / "infra"
    initialize(infra)
    (project / "build").mkdir()
    (project / "build" / "cloud_function.zip").write_bytes(b"any")
    return infra


def test_a_binding_on_the_project_is_found(github_infra: Path) -> None:
    with (github_infra / "iam.tf").open("a") as file:
        file.write(PROJECT_BINDING)

    with pytest.raises(AssertionError, match="a role on the project"):
        bindings(github_infra, "nprod")


def test_a_binding_that_is_not_documented_is_found(github_infra: Path) -> None:
    replace(
        github_infra / "function.tf",
        '"roles/storage.objectCreator" # can neither read nor overwrite messages',
        '"roles/storage.objectAdmin"',
    )

    found = bindings(github_infra, "nprod") - documented_bindings(github_infra)

    assert found == {Binding("function", "roles/storage.objectAdmin", "bucket `messages`")}


def test_the_configuration_is_formatted_valid_and_tested(checks: Checks) -> None:
    assert len(re.findall(r"Success!.* [1-9]\d* passed, 0 failed", checks.printed)) == 2


def test_each_environment_has_exactly_the_documented_bindings(
    combination: str, projects: dict[str, Path], checks: Checks
) -> None:
    environments = COMBINATIONS[combination].get("environments", "nprod, prod").split(", ")
    documented = documented_bindings(projects[combination] / "infra")

    assert checks.bindings == dict.fromkeys(environments, documented)


def test_a_second_function_has_its_own_account_and_only_its_own_secrets(
    resources_with_a_second_function: Future[list[dict[str, Any]]],
) -> None:
    resources = resources_with_a_second_function.result()

    def values(kind: str) -> dict[Any, Any]:
        return {each.get("index"): each["values"] for each in resources if each["type"] == kind}

    functions = values("google_cloudfunctions2_function")
    assert functions["cloud_function"]["name"] == "the-function"
    assert functions["monthly_reports"]["name"] == "the-function-monthly-reports"
    configurations = {key: value["service_config"][0] for key, value in functions.items()}
    assert configurations["monthly_reports"]["available_memory"] == "4Gi"
    assert configurations["cloud_function"]["available_memory"] == "1Gi"
    assert configurations["monthly_reports"]["secret_environment_variables"] == []
    secrets = values("google_secret_manager_secret_iam_member")
    assert list(secrets) == ["cloud_function:NAME"]
    accounts = values("google_service_account")
    assert accounts["cloud_function"]["account_id"] == "the-function-function"
    assert accounts["monthly_reports"]["account_id"].startswith("the-function-monthly-re-")
