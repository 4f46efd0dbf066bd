"""What every rendered project must be, whatever the answers; `assert_sound` is all of it."""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import hcl2
import yaml
from conftest import TEMPLATE, git, run, start
from lark.exceptions import LarkError

ANSWERS_FILE = ".copier-answers.yml"

PARSERS: dict[str, Callable[[str], object]] = {
    ".hcl": hcl2.loads,
    ".json": json.loads,
    ".py": ast.parse,
    ".tf": hcl2.loads,
    ".tfbackend": hcl2.loads,
    ".tfvars": hcl2.loads,
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}
# Files of these kinds are read by people, or have a syntax too simple to break.
UNPARSED = {".md", ".example", ".sh", ".typed", ".gitignore", "Dockerfile", "justfile"}

# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
REFUSED_BY_WINDOWS = re.compile(
    r"""[<>:"\\|?*\x00-\x1f] | [ .](/|$) | (^|/) (con|prn|aux|nul|com\d|lpt\d) ([./]|$)""",
    re.IGNORECASE | re.VERBOSE,
)
# Expressions of GitHub (`${{`) and of just (`{{` in the justfile) look like Jinja's; Dagster's are
# Jinja's (`{{ dg.`), and one module looks for them (`"{{"`).
UNRENDERED = re.compile(r"(?<!\$){{(?!\"| dg\.)|{%|%}|{#|#}")

# `just prod` and its files. By default, an environment has the same name.
OF_THE_RECIPE = re.compile(
    r"""production | just[ ]prod\b | ^prod[ ]\*options | local_cloud[./]prod\b | \.local/prod\b
    | local[ ]/[ ]"prod" """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)


def contents(project: Path) -> dict[str, str]:
    """The text of each file that git would keep of a project, by its path there."""
    with start("git", "rev-parse", cwd=project) as process:
        process.communicate()
    if process.returncode != 0:  # in no repository
        git("init", "--quiet", cwd=project)
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=project)
    names = [name for name in listed.split("\0") if (project / name).is_file()]
    return {name: (project / name).read_text() for name in names}


def assert_sound(project: Path, answers: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """A project has no fault that can be seen without running it.

    Args:
        project: The rendered project.
        answers: What the user answered; all other questions got their defaults.
        defaults: The answers of a project that got nothing but defaults.
    """
    files = contents(project)
    assert_clean(files)
    assert_parses(files)
    assert_answered(files, answers)
    assert_nothing_leaked(files, defaults)
    assert_owned(files)
    assert_formatted(project)


def assert_clean(files: Mapping[str, str]) -> None:
    """Nothing unrendered, no trailing blank, no name that Windows refuses or takes for another."""
    for name, text in files.items():
        assert not REFUSED_BY_WINDOWS.search(name), f"Windows refuses the name {name}"
        assert name == "justfile" or not UNRENDERED.search(name + text), f"unrendered: {name}"
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"trailing blank: {name}"
        assert text == "" or re.search(r"[^\n]\n\Z", text), f"no newline, or several, ends {name}"
    assert len({name.casefold() for name in files}) == len(files), "names differ by case alone"


def assert_parses(files: Mapping[str, str]) -> None:
    """Each file is well-formed, as far as its kind has a form."""
    for name, text in files.items():
        path = PurePosixPath(name)
        kind = path.suffix or path.name
        if kind in UNPARSED:
            continue
        assert kind in PARSERS, f"no parser for {name}"
        try:
            PARSERS[kind](text)
        except (ValueError, SyntaxError, yaml.YAMLError, LarkError) as error:
            raise AssertionError(f"{name} does not parse") from error


def assert_answered(files: Mapping[str, str], answers: Mapping[str, Any]) -> None:
    """The answers file holds what was answered, as it was answered."""
    kept = yaml.safe_load(files[ANSWERS_FILE])
    assert {name: kept[name] for name in answers} == dict(answers)


def assert_nothing_leaked(files: Mapping[str, str], defaults: Mapping[str, Any]) -> None:
    """No file knows a default that got another answer, or where the template was."""
    kept = yaml.safe_load(files[ANSWERS_FILE])
    answers = words(answer for name, answer in kept.items() if not name.startswith("_"))
    foreign = {str(TEMPLATE)} | {
        default
        for default in words(defaults.values())
        if not any(default in answer for answer in answers)
    }
    for name, text in files.items():
        if name != ANSWERS_FILE:
            searched = OF_THE_RECIPE.sub("", f"{name}\n{text}").casefold()
            leaked = [value for value in foreign if value.casefold() in searched]
            assert not leaked, f"{name} has what was not answered: {leaked}"


def words(answers: Iterable[Any]) -> set[str]:
    """The answers as text, and a list's words one by one."""
    return {word for answer in answers for word in str(answer).split(", ")}


def owners() -> dict[str, str]:
    """Who owns each path: the table in docs/updates.md. A folder's path ends with a slash."""
    page = (TEMPLATE / "docs" / "updates.md").read_text()
    _, _, table = page.partition("| path | owner |")
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|", table.partition("\n\n")[0], re.MULTILINE)
    return {path: owner for cell, owner in rows for path in re.findall("`(.+?)`", cell)}


def owning_path(name: str, package: str) -> str | None:
    """The longest path in the table of owners that is a file, or a folder that it is in."""
    own = name.startswith(("cloud_function/", "cloud_run_job/"))
    tasks = name.partition("/")[0] if own else "TASKS"
    matching = (
        path
        for path in owners()
        if name == (real := path.replace("PACKAGE", package).replace("TASKS", tasks))
        or (real.endswith("/") and name.startswith(real))
    )
    return max(matching, key=len, default=None)


def assert_owned(files: Mapping[str, str]) -> None:
    """Each file has an owner in docs/updates.md."""
    package = yaml.safe_load(files[ANSWERS_FILE])["package_name"]
    unowned = [name for name in files if not owning_path(name, package)]
    assert not unowned, f"docs/updates.md names no owner of {unowned}"


def assert_formatted(project: Path) -> None:
    """Ruff, with the project's own rules, has nothing to say and nothing to change."""
    run(sys.executable, "-m", "ruff", "check", "--no-cache", cwd=project)
    run(sys.executable, "-m", "ruff", "format", "--check", "--no-cache", cwd=project)
