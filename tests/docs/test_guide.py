"""The guide tells of what there is. `make test` also builds it, and finds broken links."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reference
import yaml
from conftest import TEMPLATE, source
from pictures import PICTURES, SCENES

DOCS = TEMPLATE / "docs"
ORCHESTRATOR = TEMPLATE / "template" / "orchestrator" / "src" / "{{package_name}}"
TASKS = TEMPLATE / "template" / "{{tasks_folder}}"
GCP_PIPES = TEMPLATE / "template" / "packages" / "gcp-pipes" / "src" / "gcp_pipes"


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


def first_cells(page: str, heading: str = "") -> set[str]:
    """The names in the first column of a page's tables, or of those below one heading."""
    text = (DOCS / "reference" / page).read_text()
    if heading:
        text = re.split("^## ", text.partition(f"{heading}\n")[2], flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall("`(.+?)`", cell)}


def texts(*sources: Path) -> set[str]:
    """All the texts that stand in Python sources."""
    nodes = (node for path in sources for node in ast.walk(ast.parse(source(path))))
    return {str(node.value) for node in nodes if isinstance(node, ast.Constant)}


def test_the_navigation_names_each_page_and_no_other() -> None:
    configuration = (TEMPLATE / "mkdocs.yml").read_text().partition("markdown_extensions:")[0]

    named = list(pages(yaml.safe_load(configuration)["nav"]))

    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_pages_that_are_made_from_the_code_are_up_to_date() -> None:
    for path, text in reference.pages().items():
        assert path.read_text() == text, f"{path} is not what `make docs` writes"


def test_each_picture_is_made_by_the_script_and_shown() -> None:
    sources = [TEMPLATE / "README.md", *DOCS.rglob("*.md")]
    shown = {
        name for page in sources for name in re.findall(r"pictures/(\w+)\.png", page.read_text())
    }

    made = {scene.__name__ for scene in SCENES}

    assert shown == made == {picture.stem for picture in PICTURES.glob("*.png")}


def test_the_diagram_is_drawn_from_its_source() -> None:
    source = (PICTURES / "flow.mmd").read_text()
    drawn = (PICTURES / "flow.svg").read_text()

    labels = re.findall(r"(?: as |: )(.+)$", source, re.MULTILINE)
    texts = "".join(re.sub("<style>.*?</style>|<[^>]+>", "", drawn).split())

    assert len(labels) == 6 + 12
    assert [label for label in labels if "".join(label.split()) not in texts] == []


def test_the_page_lists_the_settings_that_the_code_reads() -> None:
    variable = re.compile("[A-Z]+(_[A-Z]+)+")
    files = ("settings.py.jinja", "job_settings.py", "defs/alerts.py")
    of_dagster = set(filter(variable.fullmatch, texts(*(ORCHESTRATOR / file for file in files))))
    external = GCP_PIPES / "external"
    sources = [
        *(TASKS / name for name in ("settings.py", "function_settings.py")),
        external / "logs.py",
        external / "message_writer.py",
    ]
    of_the_function = set(filter(variable.fullmatch, texts(*sources)))

    # Google's own libraries read the first one, and the doctor the second. `url_variable` makes the
    # names of the third kind.
    elsewhere = {"GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_REGION", "FUNCTION_URL_NAME"}
    assert first_cells("settings.md", "## Dagster") == of_dagster | elsewhere
    production = ORCHESTRATOR.parents[1] / "production"
    read = {
        name
        for file in production.iterdir()
        for name in re.findall(r"env: (\w+)", file.read_text())
    }
    assert first_cells("settings.md", "## Dagster's instance") == read
    # The Functions Framework reads both. The function sets the first one itself.
    documented = first_cells("settings.md", "## The function")
    assert documented == of_the_function - {"LOG_EXECUTION_ID"} | {"THREADS"}


def test_the_page_lists_the_metadata_that_the_code_reports() -> None:
    orchestrator = GCP_PIPES / "orchestrator"
    name = re.compile(r"table_(location|version|size_bytes|files)|preview|dagster/\w+")
    suffix = re.compile(r"_[a-z]+")  # of what is called
    [what] = re.findall(
        r'^    what = "(.+)"$', (orchestrator / "cloud_function.py").read_text(), re.M
    )
    partitions = re.compile(r"failed_partitions|partitions_\w+")
    of_calls = texts(orchestrator / "outcome.py", GCP_PIPES / "external" / "written_table.py")
    found = set(filter(name.fullmatch, of_calls))
    found |= {f"{what.replace(' ', '_')}{each}" for each in filter(suffix.fullmatch, of_calls)}
    found |= set(filter(partitions.fullmatch, texts(orchestrator / "partitions" / "results.py")))

    assert first_cells("metadata.md") == found
