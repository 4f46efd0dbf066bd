"""Finds the errors in a `defs.yaml`: each with its line, its field, and what belongs there."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import dagster as dg
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
"""The path to a part of a document: names of fields, and indexes of list items."""

_TYPES_IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_TYPE_ERRORS = (
    *("_type", "_parsing", "_from_float", "_str", "is_instance_of"),
    *("literal_error", "enum", "none_required"),
)
"""How Pydantic's names of errors about the type of a value end."""


class DefsYamlError(Exception):
    """The errors in all `defs.yaml` files, one line each."""

    def __init__(self, *errors: str) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class MustBe(NamedTuple):
    """Metadata in the annotation of a field: what the field accepts, in words."""

    must_be: str


class ErrorAt(NamedTuple):
    """An error, and its place in a document."""

    place: Place
    problem: str

    @property
    def field(self) -> str | None:
        """The component's field that has the error; None if it is not in `attributes`."""
        section, *names = self.place or (None,)
        return str(names[0]) if section == "attributes" and names else None

    def located(self, positions: SourcePositionTree | None) -> str:
        """The error in one line, with its file and line number if it is from a file."""
        text = f"{'.'.join(map(str, self.place)) or 'The document'} {self.problem}"
        if positions is None:
            return text
        return f"{positions.lookup_closest_and_path(self.place, None)[0]}: {text}"


def find_errors(document: Any, component: type[dg.Component] | None) -> list[ErrorAt]:
    """The errors in a document that can be found without resolving its templates."""
    attributes = None if component is None else component.get_model_cls()
    fields: dict[str, Any] = {
        "post_processing": (ComponentPostProcessingModel.model() | None, None)
    }
    if attributes is not None:
        is_required = any(field.is_required for field in yaml_fields(attributes).values())
        fields["attributes"] = (attributes, ...) if is_required else (attributes | None, None)
    # Dagster has a model of each part, but none of the whole document.
    return _check(document, create_model("Document", __base__=ComponentFileModel, **fields), ())


def _check(value: Any, kind: Any, place: Place) -> list[ErrorAt]:
    """The errors in the parts of a value. If there are none, those of the value as a whole."""
    return list(_check_parts(value, kind, place)) or list(_check_whole(value, kind, place))


def _check_parts(value: Any, kind: Any, place: Place) -> Iterator[ErrorAt]:
    types = _types(kind)
    models = [each for each in types if _is_a(each, BaseModel)]
    if Any in types:
        return
    if isinstance(value, dict) and models and not any(_is_a(each, Mapping) for each in types):
        yield from _check_mapping(value, models, place)
    elif isinstance(value, dict | list):
        collection = Mapping if isinstance(value, dict) else Sequence
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _check(item, _item_kind(types, collection), (*place, name))


def _check_mapping(
    value: Mapping[Any, Any], models: Sequence[type[BaseModel]], place: Place
) -> list[ErrorAt]:
    """Compare a mapping with the model that it was most likely meant for."""
    wrong: dict[Place, ErrorAt] = {}
    for name, choice in value.items() if len(models) > 1 else ():
        choices = {model: _choices_of(model, name) for model in models}
        if all(choices.values()):  # the models differ in this field, which is mostly `type`
            known = [known for each in choices.values() for known in each]
            if choice not in known:
                wrong[*place, name] = ErrorAt((*place, name), _wrong_choice(choice, known))
                choice = nearest(choice, known)
            models = [each for each in models if choice is None or choice in choices[each]]
    found = (_check_fields(value, model, place) for model in models)
    others = ([error for error in errors if error.place not in wrong] for errors in found)
    return [*wrong.values(), *min(others, key=len)]


def _check_fields(
    value: Mapping[Any, Any], model: type[BaseModel], place: Place
) -> Iterator[ErrorAt]:
    fields = yaml_fields(model)
    missing = [name for name in fields if name not in value]
    for name, part in value.items():
        if name in fields:
            yield from _check_field(part, fields[name], (*place, name))
        elif model.model_config.get("extra") != "allow":
            meant = nearest(name, missing)
            advice = did_you_mean(meant) or f" The fields are: {', '.join(fields) or 'none'}."
            yield ErrorAt((*place, name), "is not a field." + advice)
            if meant is not None:
                missing.remove(meant)  # a misspelled field is one error, not two
                if isinstance(part, dict | list):
                    yield from _check_field(part, fields[meant], (*place, name))
    for name in missing:
        if fields[name].is_required:
            yield ErrorAt((*place, name), "is required, but missing. Add it.")


def _check_field(value: Any, field: YamlField, place: Place) -> list[ErrorAt]:
    if field.takes_template and isinstance(value, str) and re.search(r"\{[%{]", value):
        return []  # its value is not known before it is resolved
    if field.needs_template and value is not None:
        return [ErrorAt(place, wrong_value('a template, "{{ dg. ... }}"', value))]
    return _check(value, field.kind, place)


def _check_whole(value: Any, kind: Any, place: Place) -> Iterator[ErrorAt]:
    """The errors that Pydantic finds."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        errors = error.errors()
    else:
        return
    parts = {_part_of(value, each): each["msg"] for each in errors}
    if deepest := max(map(len, parts)):  # in a part of a type that `_check_parts` does not know
        for part, message in parts.items():
            if len(part) == deepest:
                yield ErrorAt((*place, *part), f"is invalid: {message}.")
    elif choices := _choices(kind):
        yield ErrorAt(place, _wrong_choice(value, choices))
    else:
        yield ErrorAt(place, wrong_value(_in_words(kind, errors), value))


def _part_of(value: Any, error: ErrorDetails) -> Place:
    """The part of a value that an error is about. Its location also names members of unions."""
    place: Place = ()
    for part in error["loc"]:
        is_name = isinstance(value, dict) and part in value
        if is_name or (isinstance(value, list) and isinstance(part, int)):
            place, value = (*place, part), value[part]
    return (*place, error["loc"][-1]) if error["type"] == "missing" else place


def _types(kind: Any) -> list[Any]:
    """The members of a union, or the type itself, without metadata."""
    if get_origin(kind) is Annotated:
        return _types(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [each for member in get_args(kind) for each in _types(member)]
    return [kind]


def _is_a(kind: Any, base: type) -> bool:
    """`issubclass`, also for types such as `dict[str, int]`. Here, text is not a sequence."""
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, base) and origin is not str


def _item_kind(types: Iterable[Any], collection: type) -> Any:
    """The type of all items of a list or a mapping; Any if the items have different types."""
    first = 1 if collection is Mapping else 0  # after the type of the keys
    kinds = [get_args(each)[first:] for each in types if _is_a(each, collection)]
    items = [own[0] if own[1:] in ((), (...,)) and own else Any for own in kinds]
    return Union[tuple(items)] if items else Any  # noqa: UP007


def _choices(kind: Any) -> list[Any]:
    """The values of a `Literal` or an `Enum`; empty for other types."""
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
    """The valid value that was most likely meant; None if none is similar."""
    by_text = {str(each).lower(): each for each in right}
    found = difflib.get_close_matches(str(wrong).lower(), by_text, n=1)
    return by_text[found[0]] if found else None


def did_you_mean(meant: Any) -> str:
    """The suggestion at the end of an error; empty if there is none."""
    return "" if meant is None else f" Did you mean {meant}?"


def wrong_value(must_be: str, value: Any) -> str:
    """The text of an error: what the field accepts, and its value."""
    return f"must be {must_be}; it is {'empty' if value is None else repr(value)}."


def _wrong_choice(value: Any, choices: Sequence[Any]) -> str:
    return wrong_value(_or(map(repr, choices)), value) + did_you_mean(nearest(value, choices))


def _in_words(kind: Any, errors: Iterable[ErrorDetails]) -> str:
    """What a field accepts, given Pydantic's errors about its value."""
    for metadata in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        if isinstance(metadata, MustBe):
            return metadata.must_be
    for error in errors:
        if not error["type"].endswith(_TYPE_ERRORS):
            message = error["msg"]
            found = message.removeprefix("Input should be ")
            return found if found != message else f"valid ({message})"
    types = [each for each in _types(kind) if each is not NoneType]
    if len(types) == 1 and _is_a(types[0], BaseModel):
        required = [name for name, field in yaml_fields(types[0]).items() if field.is_required]
        return f"a mapping with {' and '.join(required)}" if required else "a mapping"
    return _or(map(_type_in_words, types))


def _type_in_words(kind: Any) -> str:
    if choices := _choices(kind):
        return _or(map(repr, choices))
    if _is_a(kind, BaseModel) or _is_a(kind, Mapping):
        return "a mapping"
    return "a list" if _is_a(kind, Sequence) else _TYPES_IN_WORDS.get(kind, str(kind))


def _or(alternatives: Iterable[str]) -> str:
    *others, last = dict.fromkeys(alternatives)
    return f"{', '.join(others)} or {last}" if others else last
