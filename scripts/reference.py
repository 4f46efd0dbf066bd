"""Writes the pages of the guide's reference that are made from the code: `make docs`."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import TEMPLATE, questions

REFERENCE = TEMPLATE / "docs" / "reference"
COMPONENTS = TEMPLATE / "template/packages/gcp-pipes/src/gcp_pipes/components"


def pages() -> dict[Path, str]:
    """The pages, each with what it has to hold."""
    return {
        REFERENCE / "questions.md": questions_page(),
        REFERENCE / "component.md": component_page(),
    }


def questions_page() -> str:
    """The questions of `copier copy` in their order, with their defaults and validation errors."""
    return "\n".join(
        [
            "# Questions",
            "",
            "The questions of `copier copy`, in this order. Each has a default. On the command",
            "line, `--data NAME=VALUE` answers one. You can",
            "[change an answer](../guides/update.md#change-an-answer) later.",
            *(line for name, question in questions().items() for line in _question(name, question)),
            "",
        ]
    )


def _question(name: str, question: dict[str, Any]) -> Iterator[str]:
    yield from ("", f"## `{name}`", "", " ".join(question["help"].split()), "")
    if choices := question.get("choices"):
        number = "Some" if question.get("multiselect") else "One"
        yield f"- {number} of: {', '.join(f'`{value}`' for value in choices.values())}"
    yield f"- Default: {_default(question['default'])}"
    if when := question.get("when"):
        yield f"- Asked if `{when.strip('{} ')}`"
    if errors := list(_validation_errors(question.get("validator", ""))):
        yield "- Validation errors:"
        yield from (f"    - {error}" for error in errors)


def _default(default: str | list[str]) -> str:
    """A default, or how it is derived from other answers."""
    if isinstance(default, list):
        return ", ".join(f"`{value}`" for value in default)
    if "package_name_of" in default:
        return "derived from the project's name"
    if default == "{{ project_slug }}":
        return "the package's name, with hyphens"
    return f"`{_named(default)}`"


def _validation_errors(validator: str) -> Iterator[str]:
    """The errors of a validator, and of the rule that it uses."""
    rules = (TEMPLATE / "rules.jinja").read_text()
    macros = re.findall(r"{%- macro (\w+)\(.*?%}(.*?){%- endmacro", rules, re.DOTALL)
    used = [body for name, body in macros if f"{{{{ {name}(" in validator]
    for text in re.split(r"{%.*?%}", "{% %}".join([validator, *used]), flags=re.DOTALL):
        sentence = " ".join(text.split())
        if sentence and not re.fullmatch(r"{{ \w+\(.*\) }}", sentence):
            yield _named(sentence)


def _named(text: str) -> str:
    """A Jinja text, with names in capitals instead of values."""
    return re.sub(r"{{ (\w+) }}", lambda match: match[1].upper(), text)


def component_page() -> str:
    """The fields of `defs.yaml`, as the components declare them."""
    return "\n".join(
        [
            "# Components",
            "",
            "What can stand in a `defs.yaml` under `attributes`, where its `type` is",
            "`gcp_pipes.components.CloudFunctionAsset` or `gcp_pipes.components.CloudRunJobAsset`.",
            "For subclasses, there is [their API](api.md#gcp_pipes.components.CloudFunctionAsset).",
            "The fields of an asset or a check are Dagster's; `uv run just dg utils",
            "inspect-component TYPE` lists them, too.",
            *_section("Both", "external_asset.py", "ExternalAsset"),
            *_section("CloudFunctionAsset", "cloud_function_asset.py", "CloudFunctionAsset"),
            *_section("CloudRunJobAsset", "cloud_run_job_asset.py", "CloudRunJobAsset"),
            "",
        ]
    )


def _section(title: str, module: str, component: str) -> Iterator[str]:
    """The fields that a component adds to those of its base."""
    [definition] = (
        node
        for node in ast.parse((COMPONENTS / module).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == component
    )
    yield from ("", f"## {title}")
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and "Annotated" in ast.unparse(node.annotation):
            yield from _field(node)


def _field(field: ast.AnnAssign) -> Iterator[str]:
    assert isinstance(field.target, ast.Name)
    told = {
        keyword.arg: keyword.value
        for call in ast.walk(field.annotation)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
    }
    yield from ("", f"### `{field.target.id}`", "", ast.literal_eval(told["description"]), "")
    if "must_be" in told:
        yield f"- It is {ast.literal_eval(told['must_be'])}"
    if field.value is not None and ast.literal_eval(field.value) is not None:
        yield f"- Default: `{ast.literal_eval(field.value)}`"
    elif field.value is None and "default_factory" not in told:
        yield "- Required"
    yield "- Examples: " + ", ".join(
        f"`{json.dumps(example)}`" for example in ast.literal_eval(told["examples"])
    )


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
