"""Base of components that report the errors in all `defs.yaml` files in one run."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Self

import dagster as dg
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model, model_validator

from gcp_pipes.components.yaml_errors import (
    DefsYamlError,
    ErrorAt,
    MustBe,
    Place,
    did_you_mean,
    find_errors,
    nearest,
    wrong_value,
)
from gcp_pipes.orchestrator.dagster_internals import (
    ResolutionException,
    SourcePositionTree,
    YamlDocument,
    find_defs_or_component_yaml,
    is_checking_definitions,
    parse_yamls_with_source_position,
    resolution_error,
    resolve_fields,
    yaml_document,
    yaml_documents,
)


class CheckedComponent(dg.Component, dg.Model, dg.Resolvable):
    """A component that reports all errors in its YAML, together with those in other files."""

    _resolution_errors: list[ErrorAt]

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The model of `attributes`: it has their schema, and leaves all checks to `load`."""
        return _lenient(cls.model())

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Make the component. Raise a `DefsYamlError` with all errors in all documents."""
        document = yaml_document(context)
        if document is None:  # the attributes come from Python, or from Dagster's web page
            given = attributes and _given(attributes)
            component, errors = cls._load({"type": "", "attributes": given}, None, context)
        else:
            component, errors = cls._load(*document.content, context)
            if errors:
                documents = yaml_documents(context.component_tree)
                errors = [error for each in documents for error in _errors_in(each)]
        if errors:
            raise DefsYamlError(*errors)
        return component

    @classmethod
    def _load(
        cls,
        document: Mapping[str, Any],
        positions: SourcePositionTree | None,
        context: dg.ComponentLoadContext,
    ) -> tuple[Self, list[str]]:
        """Make the component of the valid fields, and find the errors in the others."""
        errors = find_errors(document, cls)
        wrong = {error.field for error in errors}
        attributes = document.get("attributes") or {}
        valid = {name: value for name, value in attributes.items() if name not in wrong}
        component = super().load(cls.get_model_cls().model_validate(valid), context)
        errors += component._resolution_errors
        for error in errors:
            if error.field is not None:  # without this, the field would have its default
                component.__dict__.pop(nearest(error.field, cls.model_fields), None)
        try:
            for place, problem in component._find_inconsistencies(context.project_root):
                errors.append(ErrorAt(("attributes", *place), problem))
        except AttributeError:  # it read a field that has an error
            if not errors:
                raise
        return component, [error.located(positions) for error in errors]

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Resolve all fields. Dagster itself stops at the first one that it cannot resolve."""
        given = _given(model)
        values: dict[str, Any] = {}
        errors: list[ErrorAt] = []
        for name, info in cls.model().model_fields.items():
            if (key := info.alias or name) in given:
                value = TypeAdapter(info.rebuild_annotation()).validate_python(given[key])
                field = cls.model().model_construct({name}, **{name: value})
                try:
                    values |= resolve_fields(field, cls, context)
                except ResolutionException as error:
                    path, reason = resolution_error(error)
                    place = path or ("attributes", name)
                    if not reason.startswith("must be "):  # as the error of a `checked` field does
                        reason = f"could not be resolved: {reason}"
                    errors.append(ErrorAt(place, reason))
        try:
            component = cls(**values)
        except ValidationError as error:
            component = cls.model_construct(**values)
            errors += [
                ErrorAt(("attributes", *each["loc"]), f"is invalid: {each['msg']}.")
                for each in error.errors()
                if each["type"] != "missing"  # it has another error
            ]
        component._resolution_errors = errors
        return component

    def _find_inconsistencies(self, project_root: Path) -> Iterator[tuple[Place, str]]:
        """Compare the fields with each other and with the project. Invalid ones do not exist."""
        yield from ()


def checked(kind: Any, must_be: str, **documentation: Any) -> dg.Resolver:
    """Accept a value of the type `kind`, or a template for one; `must_be` is the type in words."""

    def resolve(context: dg.ResolutionContext, value: Any) -> Any:
        value = context.resolve_value(value)
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError:
            raise ValueError(wrong_value(must_be, value)) from None

    in_yaml = Annotated[kind, MustBe(must_be)]
    return dg.Resolver(
        resolve, model_field_type=in_yaml, inject_before_resolve=False, **documentation
    )


def omit_template(schema: dict[str, Any]) -> None:
    """Change the schema of a list: without the alternative, `dg check yaml` names a wrong item."""
    [items] = [each for each in schema.pop("anyOf") if each["type"] == "array"]
    schema.update(items)


class _Lenient(BaseModel):
    """A model that accepts every mapping: the errors of `load` are clearer than Dagster's."""

    _given: Any

    @model_validator(mode="wrap")
    @classmethod
    def _accept(cls, given: Any, validate: Callable[[Any], Self]) -> Self:
        if not isinstance(given, Mapping):
            return validate(given)
        accepted = cls.model_construct()
        accepted._given = given
        return accepted

    @classmethod
    def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        """The schema; an empty one if `load` reports the errors right afterwards."""
        return {} if is_checking_definitions() else super().model_json_schema(*arguments, **options)


@functools.cache
def _lenient(model: type[BaseModel]) -> type[BaseModel]:
    return create_model(model.__name__, __base__=(_Lenient, model))


def _given(model: BaseModel) -> Any:
    if isinstance(model, _Lenient):
        return model._given
    return model.model_dump(exclude_unset=True, by_alias=True)


def _errors_in(document: YamlDocument) -> list[str]:
    component, (content, positions), context = document
    if issubclass(component, CheckedComponent):
        return component._load(content, positions, context)[1]
    return [error.located(positions) for error in find_errors(content, component)]


def check_files(folder: Path, package: str) -> None:
    """Raise a `DefsYamlError` if an error keeps Dagster from loading any component."""
    errors: list[tuple[str, bool]] = []
    for each in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())]):
        parts = each.relative_to(folder).parts
        file = find_defs_or_component_yaml(each)
        if file is not None and not any(part.startswith(".") for part in parts):
            errors += _errors_before_loading(file, ".".join([package, *parts]))
    if not all(is_left for _, is_left in errors):  # `load` finds more errors, if it is called
        raise DefsYamlError(*(error for error, _ in errors))


def _errors_before_loading(file: Path, package: str) -> Iterator[tuple[str, bool]]:
    """Each error, and whether it is left to `load`."""
    try:
        documents = parse_yamls_with_source_position(file.read_text("utf-8"), str(file))
    except Exception as error:  # of the YAML parser, or of what makes values of its output
        yield _parse_error(file, error), False
        return
    if not documents:
        yield f"{file}:1: The file has no component. Add one, or delete the file.", False
    for document, positions in documents:
        component, errors = _find_component(document, package)
        is_checked = component is not None and issubclass(component, CheckedComponent)
        for each in [*errors, *find_errors(document, component)]:
            yield each.located(positions), is_checked and each.field is not None


def _parse_error(file: Path, error: Exception) -> str:
    if isinstance(error, TypeError):
        # YAML parses the braces of a template as a mapping, which cannot be the key of another.
        lines = enumerate(file.read_text("utf-8").splitlines(), 1)
        number = next((number for number, line in lines if re.match(r"[^#\"']*{{", line)), 1)
        return f"{file}:{number}: The document could not be parsed. Put quotes around templates."
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", error)
    return f"{file}:{mark.line + 1 if mark else 1}: The document could not be parsed: {problem}."


def _find_component(document: Any, package: str) -> tuple[type[dg.Component] | None, list[ErrorAt]]:
    """The component that `type` names or, if there is none, the one that was most likely meant."""
    fields = document if isinstance(document, dict) else {}
    field = nearest("type", fields)
    name = fields.get(field)
    if not isinstance(name, str):
        return None, []
    module, _, class_name = (package + name if name.startswith(".") else name).rpartition(".")
    try:
        found = _components(module)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and module.startswith(error.name or ".")):
            return None, []  # Dagster shows the traceback of the module
        found = {}
    if class_name in found:
        return found[class_name][1], []
    own = _components(__package__)
    known = {**_components("dagster"), **found, **own}
    path, component = known.get(nearest(class_name, known), (None, None))
    names = ", ".join(path for path, _ in own.values())
    advice = did_you_mean(path) or f" The components are: {names}."
    return component, [ErrorAt((field,), wrong_value("a component", name) + advice)]


def _components(module: str) -> dict[str, tuple[str, type[dg.Component]]]:
    """The components in a module by their names, each with its full name."""
    return {
        name: (f"{module}.{name}", each)
        for name, each in (vars(import_module(module)) if module else {}).items()
        if isinstance(each, type) and issubclass(each, dg.Component)
    }
