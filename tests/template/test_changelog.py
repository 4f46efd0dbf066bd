"""Each release has its notes."""

import re
from itertools import pairwise

from conftest import RELEASES, TEMPLATE
from packaging.version import Version

SECTIONS = re.findall(
    r"^## (\S+)(?: \((\d{4}-\d\d-\d\d)\))?\n(.*?)(?=^## |\Z)",
    (TEMPLATE / "CHANGELOG.md").read_text(),
    re.DOTALL | re.MULTILINE,
)
VERSIONS = [title for title, _, _ in SECTIONS if title != "Unreleased"]


def test_every_section_tells_how_to_upgrade() -> None:
    assert SECTIONS
    assert [title for title, _, notes in SECTIONS if "\n### Upgrading\n" not in notes] == []


def test_versions_have_a_date_and_the_newest_comes_first() -> None:
    assert all(date for title, date, _ in SECTIONS if title != "Unreleased")
    assert all(Version(newer) > Version(older) for newer, older in pairwise(VERSIONS))
    assert "Unreleased" not in [title for title, _, _ in SECTIONS[1:]]


def test_every_release_has_a_section() -> None:
    assert [release for release in RELEASES if release not in VERSIONS] == []
