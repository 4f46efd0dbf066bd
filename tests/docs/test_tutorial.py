"""The tutorial works as it is written: its files are written and its commands typed, in order."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import TEMPLATE, commit_all, copy_working_tree, run
from dev import running_dev

PAGE = TEMPLATE / "docs" / "tutorial.md"


class Block(NamedTuple):
    """A block of code in the page: its language, its title or an empty one, and the code."""

    language: str
    title: str
    code: str


def blocks() -> list[Block]:
    found = re.findall(
        r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert PAGE.read_text().count("```") == 2 * len(found), "a block that is not understood"
    return [Block(*block) for block in found]


def script(template: Path) -> Iterator[str]:
    """What a reader does at a terminal, until the command that does not end by itself."""
    for block in blocks():
        code = block.code.replace("URL_OF_THIS_REPOSITORY", str(template))
        match block:
            case Block("sh", ""):
                yield code
            case Block("python" | "yaml", path, _) if path:
                yield f"cat > {path} <<'END_OF_FILE'\n{code}END_OF_FILE\n"
            case Block("sh", "until you press Ctrl-C", "uv run just dev\n"):
                return
            case _:
                raise AssertionError(f"a block that is not understood: {block}")


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The template as it stands, in a repository of its own."""
    template = tmp_path / "template"
    copy_working_tree(template)
    commit_all(template, "The template")
    return template


def test_the_tutorial_works_word_for_word(template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty folder"
    folder.mkdir()

    printed = run("bash", "-euc", "\n".join(script(template)), cwd=folder).stdout

    [quoted] = re.findall(r"^The output includes `(.+?)`", PAGE.read_text(), re.M)
    assert quoted in printed
    with running_dev(folder / "my-data-platform") as dev:
        assert {"people", "visits", "visitors"} <= dev.assets()
        dev.materialize("people")
        backfill = dev.backfill("visits", ["2026-01-01", "2026-01-02"])
        assert [run["status"] for run in backfill["runs"]] == ["SUCCESS"]
