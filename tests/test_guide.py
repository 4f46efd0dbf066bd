"""The guide has each of its pages, once. `make test` also builds it, and finds broken links."""

from collections.abc import Iterator
from typing import Any

import yaml
from conftest import TEMPLATE


def pages(navigation: Any) -> Iterator[str]:
    """The files that the navigation names."""
    match navigation:
        case str():
            yield navigation
        case list():
            for part in navigation:
                yield from pages(part)
        case dict():
            for part in navigation.values():
                yield from pages(part)


def test_the_navigation_names_each_page_and_no_other() -> None:
    configuration = (TEMPLATE / "mkdocs.yml").read_text().partition("markdown_extensions:")[0]
    docs = TEMPLATE / "docs"

    named = list(pages(yaml.safe_load(configuration)["nav"]))

    assert sorted(named) == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
