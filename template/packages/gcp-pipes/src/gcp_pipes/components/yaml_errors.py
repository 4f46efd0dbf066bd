"""What is wrong in a `defs.yaml`: each mistake by its line, its field, and what belongs there."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

from gcp_pipes.orchestrator.dagster_internals import (
    ComponentFileModel,
    ComponentPostProcessingModel,
    SourcePositionTree,
    YamlField,
    yaml_fields,
)

Place = tuple[str | int, ...]
"""The way to a part of a document: names of fields, and numbers of items in a list."""

_TYPES_IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_OF_ANOTHER_TYPE = (
    *("_type", "_parsing", "_from_float", "_str", "is_instance_of"),
    *("literal_error", "enum", "none_required"),
)
"""How the errors of Pydantic end that are about a value's type."""


class DefsYamlError(Exception):
    """What is wrong in the project's `defs.yaml` files, in a line for each mistake.

    Args:
        errors: The lines.
    """

    def __init__(self, *errors: str) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class MustBe(NamedTuple):
    """What belongs into a field, in words: a part of the annotation of the field's type."""

    must_be: str


class Mistake(NamedTuple):
    """A part of a document that is wrong, and why."""

    place: Place
    problem: str

    @property
    def field(self) -> str | None:
        """The field of the component that it is in; None if it is elsewhere."""
        match self.place:
            case ("attributes", name, *_):
                return str(name)
            case _:
                return None

    def located(self, positions: SourcePositionTree | None) -> str:
        """The mistake in one line, with its file, its line, and its field.

        Args:
            positions: Where the parts of the document are; None if it is not from a file.
        """
        text = f"{'.'.join(map(str, self.place)) or 'The document'} {self.problem}"
        if positions is None:
            return text
        position, _ = positions.lookup_closest_and_path(self.place, None)
        return f"{position}: {text}"


def mistakes_in(document: Any, attributes: type[BaseModel] | None) -> list[Mistake]:
    """What is wrong in a document, as far as it shows before templates are resolved.

    Args:
        document: What a `defs.yaml` holds, or a part of it between lines of `---`.
        attributes: What its `attributes` may hold; None if that is not known.
    """
    fields: dict[str, Any] = {
        "post_processing": (ComponentPostProcessingModel.model() | None, None)
    }
    if attributes is not None:
        is_required = any(field.is_required for field in yaml_fields(attributes).values())
        fields["attributes"] = (attributes, ...) if is_required else (attributes | None, None)
    # Dagster has models of the parts of a document alone.
    return _mistakes(document, create_model("Document", __base__=ComponentFileModel, **fields), ())


def _mistakes(value: Any, kind: Any, place: Place) -> list[Mistake]:
    """What is wrong in the parts of a value; if nothing is, what is wrong with the whole."""
    return list(_in_parts(value, kind, place)) or list(_in_whole(value, kind, place))


def _in_parts(value: Any, kind: Any, place: Place) -> Iterator[Mistake]:
    types = _types(kind)
    models = [each for each in types if _is_a(each, BaseModel)]
    if Any in types:
        return
    if isinstance(value, dict) and models and not any(_is_a(each, Mapping) for each in types):
        yield from _in_fields(value, models, place)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _mistakes(item, _item_kind(kind, Mapping), (*place, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _mistakes(item, _item_kind(kind, Sequence), (*place, number))


def _in_fields(
    value: Mapping[Any, Any], models: Iterable[type[BaseModel]], place: Place
) -> Iterator[Mistake]:
    """What is wrong in a mapping, compared with the model that it was most likely meant for."""
    candidates = dict.fromkeys(models, value)
    for name in value if len(candidates) > 1 else ():
        choices = {model: _choices_of(model, name) for model in candidates}
        if all(choices.values()):  # the models differ by this field: by their `type`, mostly
            known = [choice for each in choices.values() for choice in each]
            choice = value[name]
            if choice not in known:
                yield Mistake((*place, name), _wrong_choice(choice, known))
                choice = nearest(choice, known)
            candidates = {
                model: {**candidates[model], name: own[0]}
                for model, own in choices.items()
                if choice is None or choice in own
            }
    found = [list(_in_model(value, model, place)) for model, value in candidates.items()]
    yield from min(found, key=len)


def _in_model(value: Mapping[Any, Any], model: type[BaseModel], place: Place) -> Iterator[Mistake]:
    fields = yaml_fields(model)
    missing = [name for name in fields if name not in value]
    for name, part in value.items():
        if name in fields:
            yield from _in_field(part, fields[name], (*place, name))
        elif model.model_config.get("extra") != "allow":
            meant = nearest(name, missing)
            advice = did_you_mean(meant) or f" The fields are: {', '.join(fields) or 'none'}."
            yield Mistake((*place, name), "is not a field." + advice)
            if meant is not None:
                missing.remove(meant)  # a misspelled field is one mistake, not two
                if isinstance(part, dict | list):
                    yield from _in_field(part, fields[meant], (*place, name))
    for name in missing:
        if fields[name].is_required:
            yield Mistake((*place, name), "is required, and it is missing. Add it.")


def _in_field(value: Any, field: YamlField, place: Place) -> Iterator[Mistake]:
    is_template = isinstance(value, str) and re.search(r"\{[%{]", value)
    if field.takes_template and is_template:
        return  # what it makes is not known before it is resolved
    if field.needs_template and value is not None:
        yield Mistake(place, wrong_value('a template, "{{ dg. ... }}"', value))
    else:
        yield from _mistakes(value, field.kind, place)


def _in_whole(value: Any, kind: Any, place: Place) -> Iterator[Mistake]:
    """What Pydantic does not accept."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        errors = error.errors()
    else:
        return
    parts = {_part_of(value, each): each["msg"] for each in errors}
    if any(parts):  # they are of a type that is not looked into above
        deepest = max(map(len, parts))
        for part, message in parts.items():
            if len(part) == deepest:
                yield Mistake((*place, *part), f"is wrong: {message}.")
    elif choices := _choices(kind):
        yield Mistake(place, _wrong_choice(value, choices))
    else:
        yield Mistake(place, wrong_value(_in_words(kind, errors), value))


def _part_of(value: Any, error: ErrorDetails) -> Place:
    """The part of a value that an error is about. Its location names members of unions, too."""
    place: Place = ()
    for part in error["loc"]:
        is_name = isinstance(value, dict) and part in value
        if is_name or (isinstance(value, list) and isinstance(part, int)):
            place, value = (*place, part), value[part]
    return (*place, error["loc"][-1]) if error["type"] == "missing" else place


def _types(kind: Any) -> list[Any]:
    """The types of which a value must have one, without what is said of them beyond that."""
    if get_origin(kind) is Annotated:
        return _types(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [each for member in get_args(kind) for each in _types(member)]
    return [kind]


def _is_a(kind: Any, base: type) -> bool:
    """Whether a type, such as `dict[str, int]`, is a class that is derived from another."""
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, base) and origin is not str


def _item_kind(kind: Any, collection: type) -> Any:
    """The type of each item of a list or mapping: any, if there is not one for all of them."""
    items: list[Any] = []
    for each in _types(kind):
        if _is_a(each, collection):
            arguments = [argument for argument in get_args(each) if argument is not ...]
            is_one_type = len(arguments) == (2 if collection is Mapping else 1)
            items.append(arguments[-1] if is_one_type else Any)
    return Union[tuple(items)] if items else Any  # noqa: UP007


def _choices(kind: Any) -> list[Any]:
    """The values that a type has; none if they cannot be listed."""
    choices: list[Any] = []
    for each in _types(kind):
        if get_origin(each) is Literal:
            choices += get_args(each)
        elif _is_a(each, Enum):
            choices += [member.value for member in each]
        elif each is not NoneType:
            return []
    return choices


def _choices_of(model: type[BaseModel], name: Any) -> list[Any]:
    field = yaml_fields(model).get(name)
    return _choices(field.kind) if field else []


def nearest(wrong: Any, right: Iterable[Any]) -> Any:
    """What was most likely meant; None if nothing is near.

    Args:
        wrong: What was written.
        right: What could have been written.
    """
    by_text = {str(each).lower(): each for each in right}
    found = difflib.get_close_matches(str(wrong).lower(), by_text, n=1)
    return by_text[found[0]] if found else None


def did_you_mean(meant: Any) -> str:
    """The last sentence of an error: a suggestion.

    Args:
        meant: What was most likely meant; None if nothing is near, and there is no suggestion.
    """
    return "" if meant is None else f" Did you mean {meant}?"


def _wrong_choice(value: Any, choices: Sequence[Any]) -> str:
    must_be = _or([repr(choice) for choice in choices])
    return wrong_value(must_be, value) + did_you_mean(nearest(value, choices))


def wrong_value(must_be: str, value: Any) -> str:
    """Say what belongs into a field, and what is there.

    Args:
        must_be: What belongs there, in words.
        value: What is there.
    """
    return f"must be {must_be}; it is {'empty' if value is None else repr(value)}."


def _in_words(kind: Any, errors: Iterable[ErrorDetails]) -> str:
    """What a value must be that Pydantic did not accept."""
    for metadata in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        if isinstance(metadata, MustBe):
            return metadata.must_be
    for error in errors:
        if not error["type"].endswith(_OF_ANOTHER_TYPE):
            message = error["msg"]
            found = message.removeprefix("Input should be ")
            return found if found != message else f"valid ({message})"
    types = [each for each in _types(kind) if each is not NoneType]
    if len(types) == 1 and _is_a(types[0], BaseModel):
        required = [name for name, field in yaml_fields(types[0]).items() if field.is_required]
        return f"a mapping with {' and '.join(required)}" if required else "a mapping"
    return _or([_type_in_words(each) for each in types])


def _type_in_words(kind: Any) -> str:
    if choices := _choices(kind):
        return _or([repr(choice) for choice in choices])
    if _is_a(kind, BaseModel) or _is_a(kind, Mapping):
        return "a mapping"
    if _is_a(kind, Sequence):
        return "a list"
    return _TYPES_IN_WORDS.get(kind, str(kind))


def _or(alternatives: Sequence[str]) -> str:
    *others, last = dict.fromkeys(alternatives)
    return f"{', '.join(others)} or {last}" if others else last
