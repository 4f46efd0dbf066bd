"""The links of an asset to its source code."""

from pathlib import Path

import dagster as dg

from gcp_pipes.orchestrator import code_references


def places(metadata: dict[str, dg.CodeReferencesMetadataValue]) -> list[tuple[str, int | None]]:
    """The file and the line of each reference."""
    references = metadata["dagster/code_references"].code_references
    return [
        (reference.file_path, reference.line_number)
        for reference in references
        if isinstance(reference, dg.LocalFileCodeReference)
    ]


def test_an_asset_refers_to_its_definition_and_to_its_task(tmp_path: Path) -> None:
    definition = tmp_path / "orchestrator" / "src" / "package" / "defs" / "people.py"
    definition.parent.mkdir(parents=True)
    definition.write_text("import dagster as dg\n\n\n@dg.asset\ndef people():\n    ...\n")
    task = tmp_path / "cloud_function" / "tasks" / "people.py"
    task.parent.mkdir(parents=True)
    task.write_text("\ndef run(pipes, event):\n    ...\n")

    metadata = code_references(str(definition), task="people")

    assert places(metadata) == [(str(definition), 5), (str(task), 2)]


def test_a_definition_without_the_function_refers_to_itself_only(tmp_path: Path) -> None:
    definition = tmp_path / "people.py"
    definition.write_text("people = None\n")

    assert places(code_references(str(definition), task="people")) == [(str(definition), 1)]
