"""Tries the project with the newest Dagster, in a copy: `just upgrade-test`."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from local_cloud.console import console, failed
from local_cloud.processes import UV, ProcessError, interrupted_once, run_to_end
from local_cloud.project import ORCHESTRATOR, PROJECT, task_folders

# A comment or a text in TOML. The last two kinds of texts have one line.
_TOKEN = re.compile(
    r"""\#[^\n]* | \"{3}(?:\\.|.)*?\"{3} | '{3}.*?'{3} | "(?:\\.|[^"\\\n])*" | '[^'\n]*'""",
    re.DOTALL | re.VERBOSE,
)
_BOUND = r"\s*(?:[=!~]=|===|[<>]=?)\s*\d[\w.*+!-]*\s*"
_REQUIREMENT = re.compile(
    rf"""(["']dagster[\w.-]*\s*(?:\[[^]]*\])?)({_BOUND}(?:,{_BOUND})*)((?:;.*)?["'])""",
    re.IGNORECASE,
)


def main() -> int:
    """Try the newest Dagster, and return the exit status."""
    try:
        with interrupted_once(), tempfile.TemporaryDirectory(prefix="upgrade-test-") as folder:
            copy = Path(folder) / PROJECT.name
            console.print("Copying the project ...")
            copy_project(copy)
            commands = upgrade(copy)
            check_and_test(copy)
    except KeyboardInterrupt:
        console.print("Interrupted. All processes are stopped, and the copy is deleted.")
        return 130
    except ProcessError as error:
        console.print()
        failed(f"{error}. The output is above. Your project is unchanged.")
        return error.status
    console.print()
    show_next_steps(commands)
    return 0


def copy_project(copy: Path) -> None:
    """Copy what git would commit of the project.

    Args:
        copy: The folder to create.
    """
    for name in files_to_commit():
        source, target = PROJECT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and not source.is_symlink():  # a repository in this one
            shutil.copytree(source, target, symlinks=True)
        elif source.is_symlink() or source.exists():  # not deleted
            shutil.copy2(source, target, follow_symlinks=False)


def files_to_commit() -> list[str]:
    """The files that git would commit, by their paths in the project.

    Also if the project is in no repository, or in a folder that the repository around it ignores.
    """
    if files := _list_files():
        return files
    with tempfile.TemporaryDirectory(prefix="upgrade-test-") as repository:
        command = ("git", "init", "--quiet", repository)
        subprocess.run(command, check=True)
        return _list_files(f"--git-dir={repository}/.git", f"--work-tree={PROJECT}")


def _list_files(*options: str) -> list[str]:
    command = ("git", *options, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)
    return [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]


def upgrade(copy: Path) -> list[str]:
    """Lock the newest version of each of Dagster's packages, and print what changes.

    Args:
        copy: The copy of the project.

    Returns:
        The commands that lock these versions in the project, if there are newer ones.

    Raises:
        ProcessError: uv found no versions that fit together, or could not download them.
    """
    console.print("Locking the newest versions of Dagster's packages ...")
    names = [folder.relative_to(PROJECT) for folder in (PROJECT, ORCHESTRATOR, *task_folders())]
    before = {name: lock(copy / name) for name in names}
    for file in copy.rglob("pyproject.toml"):
        if not file.is_symlink():  # it may be a file of the project
            file.write_text(lift_bounds(file.read_text()))
    after = {name: lock(copy / name, before[name]) for name in names}
    changed = [name for name in names if after[name] != before[name]]
    changes = [line for name in changed for line in differences(before[name], after[name])]
    for line in dict.fromkeys(changes):  # each line once
        console.print(f"  {line}", markup=False)
    if not changed:
        newest = after[ORCHESTRATOR.relative_to(PROJECT)]["dagster"]
        console.print(f"The project has the newest Dagster already: {newest}.")
    return [shlex.join(command_to_lock(name, before[name])) for name in changed]


def lift_bounds(text: str) -> str:
    """Lift the upper bounds of Dagster's packages, such as `<1.14`, `==1.13.*` and `~=1.13.5`.

    Args:
        text: The text of a `pyproject.toml`.

    Returns:
        The text without these bounds. Everything else is as before.
    """
    return _TOKEN.sub(lambda token: _lift_bound(token[0]), text)


def _lift_bound(token: str) -> str:
    match = _REQUIREMENT.fullmatch(token)
    if match is None:
        return token
    package, versions, rest = match.groups()
    lower = [
        re.sub(r"(?:~=|===?)(.+?)(?:\.\*)?(?=\s*$)", r">=\1", version)
        for version in versions.split(",")
        if not version.lstrip().startswith("<")
    ]
    return package + ",".join(lower) + rest


def lock(folder: Path, upgraded: Collection[str] = ()) -> dict[str, str]:
    """Write the lock file of an environment.

    Args:
        folder: The folder of the environment.
        upgraded: The packages that get their newest version. All others keep theirs, if possible.

    Returns:
        The locked versions of Dagster's packages.

    Raises:
        ProcessError: uv failed.
    """
    command = [UV, "lock", "--quiet", *_upgrades(upgraded)]
    run_to_end(f"uv lock in {folder.name}/", command, environment={}, directory=folder)
    packages = tomllib.loads((folder / "uv.lock").read_text())["package"]
    return {
        package["name"]: package["version"]
        for package in packages
        if package["name"].startswith("dagster") and "registry" in package["source"]
    }


def command_to_lock(folder: Path, packages: Collection[str]) -> list[str]:
    """The command that locks the newest versions of some packages.

    Args:
        folder: The folder of the environment, in the project.
        packages: All of Dagster's packages in its lock file. With only some of them, uv would keep
            the versions of all, since each requires the same version of the others.
    """
    directory = [] if folder == Path() else ["--directory", str(folder)]
    return ["uv", "lock", *directory, *_upgrades(packages)]


def _upgrades(packages: Collection[str]) -> list[str]:
    return [word for name in packages for word in ("-P", name)]


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The packages whose version changes, such as `dagster 1.13.5 -> 1.14.2`.

    Args:
        before: The versions by package.
        after: The same, after the change.
    """
    return [
        f"{name} {version} -> {after[name]}"
        for name, version in before.items()
        if name in after and after[name] != version
    ]


def check_and_test(copy: Path) -> None:
    """Run `just check` and `just test`, the second one also if the first one fails.

    Args:
        copy: The copy of the project.

    Raises:
        ProcessError: One of them failed. The status is that of the first failure.
    """
    errors = []
    for recipe in ("check", "test"):
        console.print(f"\n[bold]just {recipe}[/bold]")
        try:
            run_to_end(
                f"`just {recipe}`",
                [UV, "run", "just", recipe],
                environment={"TMPDIR": str(copy.parent)},
                directory=copy,
                interrupt=True,
            )
        except ProcessError as error:
            errors.append(error)
    if errors:
        raise ProcessError(" and ".join(map(str, errors)), errors[0].status)


def show_next_steps(commands: Collection[str]) -> None:
    """Print how to upgrade the project.

    Args:
        commands: The commands that lock the new versions.
    """
    if not commands:
        console.print("The checks and tests pass. There is nothing to upgrade.")
        return
    steps = (
        "Raise each upper bound in a pyproject.toml that excludes a new version, such as in "
        "orchestrator/ and packages/gcp-pipes/.",
        "\n     ".join(("Lock the new versions:", *commands)),
        "If your Dagster instance has a database, run `dagster instance migrate` with the new "
        "version before you start Dagster.",
    )
    console.print("The checks and tests pass. Your project is unchanged. To upgrade it:")
    for number, step in enumerate(steps, 1):
        console.print(f"  {number}. {step}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
