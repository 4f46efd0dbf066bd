"""What the rendered project's code says of itself: the reference is made of these docstrings."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest
from conftest import MODULES, TEMPLATE, source

GCP_PIPES = "/packages/gcp-pipes/src/"
EXPORTED = {
    name
    for path in MODULES
    if path.name == "__init__.py" and path.parent.parent.name == "gcp_pipes"
    for name in griffe.visit(path.parent.name, filepath=path, code=source(path)).exports or ()
}
"""What the subpackages of `gcp_pipes` export: the rest has docstrings for its readers."""


def read(path: Path) -> griffe.Module:
    """A module, as it is written."""
    module = griffe.visit(path.name.partition(".")[0], filepath=path, code=source(path))
    for part in public(module):
        if part.docstring is not None:
            part.docstring.parser = griffe.Parser.google
    return module


def public(of: griffe.Module | griffe.Class) -> Iterator[griffe.Object]:
    """The module or class, and the classes and functions in it that others may use."""
    yield of
    for name, member in of.members.items():
        if name.startswith("_") and name not in ("__enter__", "__getitem__"):
            continue
        match member:
            case griffe.Class():
                yield from public(member)
            case griffe.Function():
                yield member


def documented(part: griffe.Object, kind: type[griffe.DocstringSection]) -> set[str]:
    """The names, or the types of exceptions, that a section of a docstring tells of."""
    sections = part.docstring.parsed if part.docstring else []
    found = [item for section in sections if isinstance(section, kind) for item in section.value]
    assert all(item.description.strip() for item in found), f"{part.path}: a blank description"
    names = [getattr(item, "name", None) or str(item.annotation) for item in found]
    return {name.rpartition(".")[2] for name in names}


def parameters(part: griffe.Object) -> set[str]:
    """What a function, or the making of an object of a class, takes."""
    match part:
        case griffe.Class() if "__init__" in part.members:
            function = part.members["__init__"]
        case griffe.Function():
            function = part
        case _:
            return set()
    assert isinstance(function, griffe.Function)
    given = {parameter.name for parameter in function.parameters} - {"self", "cls"}
    return {name for name in given if not name.startswith("_")}


def raised(part: griffe.Object) -> set[str]:
    """The exceptions that a function itself raises, by name; by "" if a function makes them."""
    if not isinstance(part, griffe.Function):
        return set()
    assert isinstance(part.filepath, Path)
    assert part.lineno is not None
    lines = source(part.filepath).splitlines()[part.lineno - 1 : part.endlineno]
    names = {
        ast.unparse(node.exc.func).rpartition(".")[2]
        for node in ast.walk(ast.parse(textwrap.dedent("\n".join(lines))))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    }
    return {name if name[0].isupper() else "" for name in names}


def is_exported(part: griffe.Object) -> bool:
    """Whether owners of a project may use it: what `gcp_pipes` exports, and all that is theirs."""
    path = str(part.filepath)
    names = part.path.split(".")[1:]
    return GCP_PIPES not in path or (bool(names) and names[0] in EXPORTED)


def is_definition(part: griffe.Object) -> bool:
    """Whether Dagster makes a definition of a function. It shows the docstring as a description."""
    decorators = part.decorators if isinstance(part, griffe.Function) else []
    return any(str(decorator.value).startswith("dg.") for decorator in decorators)


def differences(part: griffe.Object) -> Iterator[str]:
    """Where a docstring and what it stands in tell different things."""
    taken, told = parameters(part), documented(part, griffe.DocstringSectionParameters)
    for name in sorted(taken - told):
        yield f"{part.path} does not say what {name} is."
    for name in sorted(told - taken):
        yield f"{part.path} tells of {name}, which it does not take."
    exceptions = documented(part, griffe.DocstringSectionRaises)
    for name in sorted(raised(part) - exceptions):
        if name or not exceptions:
            yield f"{part.path} does not say that it raises {name or 'an exception'}."


@pytest.mark.parametrize(
    "module", MODULES, ids=[str(path.relative_to(TEMPLATE / "template")) for path in MODULES]
)
def test_public_docstrings_document_arguments_and_errors(module: Path) -> None:
    problems = []
    for part in public(read(module)):
        if part.docstring is None:
            problems.append(f"{part.path} has no docstring.")
        elif is_exported(part) and not is_definition(part):
            problems.extend(differences(part))
    assert not problems, "\n".join(problems)
