"""`copier update` brings in what is new in the template, and keeps what the owner has made.

The template's repository is a temporary one: all releases, an older version made up here, and the
working tree as the newest one. All goes through Copier's own API, and nothing is trusted.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Set
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml
from checks import ANSWERS_FILE, contents, owners
from conftest import (
    FUNCTIONS_AND_JOBS,
    JOBS_ALONE,
    RELEASES,
    TEMPLATE,
    Workshop,
    add_second_asset,
    commit_all,
    copy_working_tree,
    git,
    replace,
    run,
    start,
)

OLDER = "0.0.0"  # made up
NEWEST = "9999.0"

PACKAGE = "my_data_platform"
EXTERNAL = "packages/gcp-pipes/src/gcp_pipes/external"
YOURS = {
    path.replace("PACKAGE", PACKAGE).replace("TASKS", "cloud_function")
    for path, owner in owners().items()
    if owner == "you"
}

Make = Callable[..., Path]


def make_older(template: Path) -> None:
    """Turn the working tree into a version that might have been before it."""
    function = template / "template" / "{{tasks_folder}}"
    external = template / "template" / EXTERNAL
    orchestrator = template / "template" / "orchestrator"
    replace(
        external / "request.py",
        """The request's ID in Cloud Trace and Cloud Logging, or `local` without one.""",
        """The request's ID in Cloud Trace.""",
    )
    replace(function / "pyproject.toml.jinja", '"polars>=1.34,<3"', '"polars>=1.29,<2"')
    replace(orchestrator / ".env.example.jinja", "MESSAGES_BUCKET=", "BUCKET=")
    replace(function / "tasks" / "people.py", "new fake people", "some people")
    replace(template / "template" / "README.md.jinja", "## Run it", "## How to run it")
    (external / "obsolete.py").write_text('"""Superseded in the next version."""\n')
    (orchestrator / "tests" / "test_settings.py.jinja").unlink()
    replace(
        template / "template" / ".github" / "workflows" / "ci.yml.jinja",
        "name: CI\n",
        "name: Continuous integration\n",
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template's repository."""
    template = tmp_path_factory.mktemp("template")

    def release(version: str, fill: Callable[[Path], None]) -> None:
        for path in template.iterdir():
            if path.name != ".git":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        fill(template)
        commit_all(template, f"Version {version}")
        git("tag", version, cwd=template)

    def fill_older(destination: Path) -> None:
        copy_working_tree(destination)
        make_older(destination)

    def fill_released(tag: str) -> Callable[[Path], None]:
        def fill(destination: Path) -> None:
            with subprocess.Popen(
                ["git", "archive", tag], cwd=TEMPLATE, stdout=subprocess.PIPE
            ) as archive:
                subprocess.run(["tar", "-x"], cwd=destination, stdin=archive.stdout, check=True)

        return fill

    release(OLDER, fill_older)
    for tag in RELEASES:
        release(tag, fill_released(tag))
    release(NEWEST, copy_working_tree)
    return template


@pytest.fixture
def make(template: Path, tmp_path: Path) -> Make:
    """Makes a project of a version of the template, and commits it."""

    def make(version: str = NEWEST, folder: str = "my project", **answers: object) -> Path:
        project = tmp_path / folder
        copier.run_copy(
            str(template), project, data=answers, vcs_ref=version, defaults=True, quiet=True
        )
        commit_all(project, f"A project from version {version}")
        return project

    return make


def update(project: Path, **options: Any) -> None:
    copier.run_update(project, defaults=True, overwrite=True, quiet=True, **options)


def assert_up_to_date(
    project: Path, before: dict[str, str], fresh: Path, added: Set[str] = frozenset()
) -> None:
    """Your files are as they were before the update; all others are as in a fresh project."""
    after, yours = contents(project), YOURS | added
    assert only(yours, after) == only(yours, before)
    assert without(yours, after) == without(yours, contents(fresh))


def only(names: Collection[str], files: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if name in names}


def without(names: Collection[str], files: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if name not in names}


def extend(project: Path) -> None:
    """Work for some weeks on a project, and keep the example."""
    function = project / "cloud_function"
    add_second_asset(project)
    with (function / "tasks" / "people.py").open("a") as task:
        task.write('\n\ndef shout(name: str) -> str:\n    """A name in capitals."""\n')
        task.write("    return name.upper()\n")
    with (project / "README.md").open("a") as readme:
        readme.write("\n## On call\n\nAsk Ada.\n")
    replace(
        function / "pyproject.toml",
        "dependencies = [\n",
        'dependencies = [\n    "arrow>=1.3,<2",\n',
    )
    patch_wiring(project)


def patch_wiring(project: Path) -> None:
    """Change a line of what is the template's."""
    replace(
        project / EXTERNAL / "request.py",
        "    event = request.get_json(force=True, silent=True)\n",
        "    event = request.get_json(force=True, silent=True)\n"
        '    logging.getLogger(__name__).debug("%s bytes", request.content_length)\n',
    )


def replace_the_example(project: Path) -> None:
    """Delete the example and what is for another forge; write an asset of one's own."""
    add_second_asset(project)
    tasks = project / "cloud_function" / "tasks"
    defs = project / "orchestrator" / "src" / PACKAGE / "defs"
    replace(defs / "cities" / "defs.yaml", "      deps: [people]\n", "")
    (tasks / "cities.py").write_text(
        '"""The cities that people live in."""\n\n'
        "from dagster_pipes import PipesContext\n\n"
        "from gcp_pipes.external import Event\n\n\n"
        "def run(pipes: PipesContext, event: Event) -> None:\n"
        '    """Count the cities."""\n'
        '    pipes.report_asset_materialization(metadata={"cities": 3})\n'
    )
    replace(project / "cloud_function" / "pyproject.toml", '    "faker>=37",\n', "")
    for name in (*YOURS - {"README.md"}, ".github/workflows/ci.yml"):
        (project / name).unlink()


def assert_passes_its_own_checks_and_tests(project: Path) -> None:
    run("uv", "run", "just", "check", cwd=project)
    run("uv", "run", "just", "test", cwd=project)


@pytest.mark.parametrize("version", [OLDER, *RELEASES])
def test_an_unchanged_project_becomes_like_a_fresh_one(version: str, make: Make) -> None:
    project = make(version)
    before = contents(project)

    update(project)

    assert_up_to_date(project, before, fresh=make(folder="fresh"))
    assert yaml.safe_load((project / ANSWERS_FILE).read_text())["_commit"] == NEWEST


@pytest.mark.parametrize("work", [extend, replace_the_example])
@pytest.mark.parametrize("version", [OLDER, *RELEASES])
def test_the_work_of_the_owner_is_kept(
    version: str, work: Callable[[Path], None], make: Make, workshop: Workshop
) -> None:
    project = make(version)
    rendered = contents(project)
    work(project)
    commit_all(project, "Work")
    before = contents(project)

    update(project)

    fresh = make(folder="fresh")
    work(fresh)
    assert_up_to_date(project, before, fresh, added=before.keys() - rendered.keys())
    assert_passes_its_own_checks_and_tests(workshop(project))


def test_a_project_tells_that_there_is_a_newer_version(make: Make) -> None:
    told = run("copier", "check-update", cwd=make(OLDER)).stdout
    assert OLDER in told
    assert NEWEST in told

    told = run("copier", "check-update", cwd=make(NEWEST, folder="fresh")).stdout
    assert "up-to-date" in told


def edit_what_changes(project: Path) -> None:
    """Change a line that the newest version of the template changes too."""
    replace(
        project / EXTERNAL / "request.py",
        """The request's ID in Cloud Trace.""",
        """The request's id in Cloud Trace, as our auditors want it.""",
    )


def test_a_line_that_both_changed_has_conflict_markers(
    make: Make, workshop: Workshop
) -> None:
    project = make(OLDER)
    edit_what_changes(project)
    commit_all(project, "Work")

    update(project)

    changed = f"{EXTERNAL}/request.py"
    assert re.findall(r"^UU (.+)$", git("status", "--porcelain", cwd=project), re.M) == [changed]
    files = contents(project)
    assert [name for name, text in files.items() if "<<<<<<<" in text] == [changed]
    conflict = re.compile(
        r"^<<<<<<< before updating\n(.*)^=======\n(.*)^>>>>>>> after updating\n", re.M | re.S
    )
    [(ours, theirs)] = conflict.findall(files[changed])
    assert "as our auditors want it" in ours
    assert "or `local` without one" in theirs

    assert_refused(project, f"{changed}:.*<<<<<<< before updating", "Decide between the two sides")

    (project / changed).write_text(conflict.sub(r"\2", files[changed]))
    assert_passes_its_own_checks_and_tests(workshop(project))


def test_a_conflict_can_be_left_in_a_file_of_its_own(make: Make) -> None:
    project = make(OLDER)
    edit_what_changes(project)
    commit_all(project, "Work")

    update(project, conflict="rej")

    rejected = f"{EXTERNAL}/request.py.rej"
    assert [name for name in contents(project) if name.endswith(".rej")] == [rejected]
    assert_refused(project, rejected, "Apply these rejected changes by hand")


def assert_refused(project: Path, *reasons: str) -> None:
    """Neither the checks, which GitHub runs, nor the commit hook let the project pass."""
    run("uv", "run", "pre-commit", "install", cwd=project)
    git("add", "--all", cwd=project)
    for command in (
        ("uv", "run", "just", "check"),
        ("git", "-c", "user.name=Owner", "-c", "user.email=owner@example.com", "commit", "-mx"),
    ):
        with start(*command, cwd=project) as process:
            printed, _ = process.communicate(timeout=300)
        assert process.returncode == 1
        for reason in reasons:
            assert re.search(reason, printed)


@pytest.mark.parametrize(
    "answers",
    [
        {"region": "us-east1"},
        {"lake_bucket": "another-lake", "messages_bucket": "another-messages-bucket"},
        {"gcp_project_id": "another-project", "function_name": "another-function"},
        {"project_name": "Zoë’s Ménagerie"},
        {"iac": "none"},
        {"ci": "gitlab"},
        {"environments": "dev, nprod, live"},
        FUNCTIONS_AND_JOBS,
    ],
    ids=lambda answers: "-".join(answers),
)
def test_a_changed_answer_reaches_all_but_your_files(answers: dict[str, Any], make: Make) -> None:
    project = make()
    before = contents(project)

    update(project, data=answers)

    assert_up_to_date(project, before, make(folder="fresh", **{**given(before), **answers}))


def given(files: dict[str, str]) -> dict[str, str]:
    """The answers of a project."""
    kept = yaml.safe_load(files[ANSWERS_FILE])
    return {name: answer for name, answer in kept.items() if not name.startswith("_")}


def test_a_package_that_its_owner_moved_is_renamed(make: Make) -> None:
    project = make()
    git("mv", f"orchestrator/src/{PACKAGE}", "orchestrator/src/zoo", cwd=project)
    commit_all(project, "Move the package")

    update(project, data={"package_name": "zoo"})

    after = contents(project)
    fresh = contents(make(folder="fresh", **{**given(after), "package_name": "zoo"}))
    assert without(["README.md"], after) == without(["README.md"], fresh)


def test_tasks_that_their_owner_moved_run_in_jobs_alone(make: Make) -> None:
    project = make()
    git("mv", "cloud_function", "cloud_run_job", cwd=project)
    commit_all(project, "Move the tasks")

    update(project, data={"runs_on": ["jobs"]})

    conflicts = re.findall(r"^UU (.+)$", git("status", "--porcelain", cwd=project), re.M)
    assert conflicts == ["cloud_run_job/pyproject.toml"]
    after = contents(project)
    to_delete = {"cloud_run_job/main.py", "cloud_run_job/function_settings.py"}
    assert to_delete <= after.keys()
    others = YOURS | to_delete | set(conflicts)
    assert without(others, after) == without(others, contents(make(folder="fresh", **JOBS_ALONE)))


def test_a_package_renamed_with_changes_in_it_shows_each_as_a_conflict(make: Make) -> None:
    project = make()
    add_second_asset(project)
    definitions = project / "orchestrator" / "src" / PACKAGE / "definitions.py"
    replace(definitions, "All definitions of this project.", "All that our team orchestrates.")
    git("mv", f"orchestrator/src/{PACKAGE}", "orchestrator/src/zoo", cwd=project)
    commit_all(project, "Change and move the package")

    update(project, data={"package_name": "zoo"})

    conflicts = re.findall(r"^UU (.+)$", git("status", "--porcelain", cwd=project), re.M)
    assert conflicts == ["orchestrator/src/zoo/definitions.py"]
    assert "All that our team orchestrates." in (project / conflicts[0]).read_text()
    assert (project / "orchestrator" / "src" / "zoo" / "defs" / "cities" / "defs.yaml").is_file()
    assert not (project / "orchestrator" / "src" / PACKAGE).exists()


def test_a_recopy_renders_everything_but_your_files(make: Make) -> None:
    project = make()
    extend(project)
    deleted = "orchestrator/tests/test_people.py"
    (project / deleted).unlink()
    commit_all(project, "Work")
    before = contents(project)

    copier.run_recopy(project, defaults=True, overwrite=True, quiet=True)

    after = contents(project)
    fresh = contents(make(folder="fresh"))
    added = before.keys() - fresh.keys()
    assert added == {
        "cloud_function/tasks/cities.py",
        f"orchestrator/src/{PACKAGE}/defs/cities/defs.yaml",
    }
    kept = {name: before[name] for name in (*added, *YOURS - {deleted})}
    assert after == {**fresh, **kept}


@pytest.fixture
def existing(tmp_path: Path) -> Path:
    """A repository with a life of its own."""
    repository = tmp_path / "existing"
    (repository / "dashboards").mkdir(parents=True)
    (repository / "README.md").write_text("# Our company\n")
    (repository / ".gitignore").write_text("*.bak\n")
    (repository / "dashboards" / "sales.sql").write_text("select 1\n")
    commit_all(repository, "Years of work")
    return repository


def test_a_repository_adopts_the_template_at_its_root(
    existing: Path, template: Path, make: Make
) -> None:
    copier.run_copy(
        str(template), existing, vcs_ref=OLDER, defaults=True, overwrite=True, quiet=True
    )
    assert git("diff", "--name-only", cwd=existing).split() == [".gitignore"]
    with (existing / ".gitignore").open("a") as ignored:
        ignored.write("\n# Ours\n*.bak\n")
    commit_all(existing, "Adopt the template")

    update(existing)

    fresh = contents(make(folder="fresh"))
    after = contents(existing)
    assert after.pop("README.md") == "# Our company\n"
    assert after.pop("dashboards/sales.sql") == "select 1\n"
    assert after.pop(".gitignore") == fresh.pop(".gitignore") + "\n# Ours\n*.bak\n"
    assert without(YOURS, after) == without(YOURS, fresh)


def test_a_repository_adopts_the_template_in_a_folder(
    existing: Path, template: Path, make: Make
) -> None:
    project = existing / "data platform"
    copier.run_copy(str(template), project, vcs_ref=OLDER, defaults=True, quiet=True)
    commit_all(existing, "Adopt the template")
    before = contents(project)

    update(project)

    assert_up_to_date(project, before, fresh=make(folder="fresh"))
    assert (existing / "README.md").read_text() == "# Our company\n"


def test_an_existing_file_is_not_overwritten_without_asking(existing: Path, template: Path) -> None:
    before = contents(existing)

    with pytest.raises(copier.errors.InteractiveSessionError):
        copier.run_copy(str(template), existing, defaults=True, quiet=True)

    assert {name: contents(existing)[name] for name in before} == before
