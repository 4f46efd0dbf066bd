"""How a faulty `defs.yaml` is refused: by its line, its field, and what belongs there."""

from collections.abc import Iterable, Iterator
from typing import Any

import dagster as dg
from pydantic import BaseModel, TypeAdapter, ValidationError

_LISTS = "assets", "checks", "deps", "owners", "kinds", "additional_deps"  # of any part of the YAML

Fault = tuple[tuple[str | int, ...], str]
"""The way to a part of the YAML that is wrong, and what is wrong with it."""


def checked(kind: Any, must_be: str, **documentation: Any) -> dg.Resolver:
    """Takes a value of a kind, or a template for one. Of any other, the line is told.

    Args:
        kind: A type, with all that Pydantic is to check of the value.
        must_be: The kind in words, for the error: what follows "It must be".
        documentation: The field's `description` and `examples`, for its schema.

    Raises:
        ValueError: Only when a value is resolved: it is of another kind.
    """

    def resolve(context: dg.ResolutionContext, value: Any) -> Any:
        value = context.resolve_value(value)
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError:
            raise ValueError(f"It must be {must_be}; it is {value!r}.") from None

    return dg.Resolver(resolve, model_field_type=kind, inject_before_resolve=False, **documentation)


def list_its_items(schema: dict[str, Any]) -> None:
    """Leave a template for a whole list out of its schema.

    With two alternatives, `dg check yaml` says of a fault in an item only that the list has one.

    Args:
        schema: The JSON schema of a field that takes a list or a template; it is changed in place.
    """
    [items] = [each for each in schema.pop("anyOf") if each["type"] == "array"]
    schema.update(items)


def refuse(
    faults: Iterable[Fault], attributes: BaseModel | None, context: dg.ComponentLoadContext
) -> None:
    """Raise an error that names the line of the first fault, if there is any.

    Args:
        faults: The faults. What comes after the first one is not looked for.
        attributes: What the YAML has as its `attributes`; None if there are none.
        context: Where the YAML is.

    Raises:
        dagster.components.resolved.errors.ResolutionException: There is a fault.
    """
    for path, problem in faults:
        place = context.resolution_context.at_path("attributes")
        for part in path:
            place = place.at_path(part)
        field = str(place.path[-1])
        raise place.build_resolve_fn_exc([problem], field_name=field, model=attributes)


def text_for_lists(attributes: BaseModel) -> Iterator[Fault]:
    """Where the YAML has text in the place of a list: Dagster would take its letters for one.

    Args:
        attributes: What the YAML has as its `attributes`, with its templates as they stand there.
    """
    given = attributes.model_dump(exclude_unset=True)
    parts: list[tuple[tuple[str | int, ...], Any]] = [((), given)]
    for field in ("assets", "checks"):
        parts += [((field, number), part) for number, part in enumerate(given.get(field, ()))]
    for path, part in parts:
        for field in _LISTS:
            value = part.get(field) if isinstance(part, dict) else None
            if isinstance(value, str) and "{{" not in value:
                yield (*path, field), f"It must be a list; it is {value!r}."
