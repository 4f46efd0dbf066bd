"""Components of which each mistake is reported, in all `defs.yaml` files, in one run."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Self

import dagster as dg
from pydantic import (
    BaseModel,
    ModelWrapValidatorHandler,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from gcp_pipes.components.yaml_errors import (
    DefsYamlError,
    Mistake,
    MustBe,
    did_you_mean,
    mistakes_in,
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
    resolve_fields,
    yaml_document,
    yaml_documents,
)


class CheckedComponent(dg.Component, dg.Model, dg.Resolvable):
    """A component that reports each mistake in its YAML, with those in all other files."""

    _unresolved: list[Mistake] = PrivateAttr(default_factory=list)

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """What `attributes` may hold, for editors and `dg check yaml`; `load` reports mistakes."""
        return _lenient(cls.model())

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Make the component that a YAML file describes.

        Args:
            attributes: What the YAML has as its `attributes`; None if there are none.
            context: Where the YAML is.

        Raises:
            DefsYamlError: There is a mistake in it.
        """
        document = yaml_document(context)
        if document is None:  # the attributes come from Python, or from Dagster's web page
            return cls._load({"type": "", "attributes": _given(attributes)}, None, context)
        try:
            return cls._load(*document.content, context)
        except DefsYamlError:
            documents = yaml_documents(context.component_tree)
            raise DefsYamlError(*(e for each in documents for e in _errors_in(each))) from None

    @classmethod
    def _load(
        cls,
        document: Mapping[str, Any],
        positions: SourcePositionTree | None,
        context: dg.ComponentLoadContext,
    ) -> Self:
        """Look for mistakes with and without templates, in each field that has no other."""
        mistakes = mistakes_in(document, cls.model())
        right = _valid_part(cls.model(), document.get("attributes") or {}, mistakes)
        component = super().load(right, context)
        mistakes += component._unresolved
        for mistake in mistakes:
            if mistake.field is not None:  # or the field that was meant would have its default
                component.__dict__.pop(nearest(mistake.field, cls.model_fields), None)
        try:
            for place, problem in component.contradictions(context.project_root):
                mistakes.append(Mistake(("attributes", *place), problem))
        except AttributeError:
            if not mistakes:
                raise
        if mistakes:
            raise DefsYamlError(*(mistake.located(positions) for mistake in mistakes))
        return component

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Resolve all fields: Dagster itself stops at the first one that it cannot resolve.

        Args:
            context: What templates are resolved with.
            model: The fields that are to be resolved.
        """
        values: dict[str, Any] = {}
        mistakes: list[Mistake] = []
        for name in type(model).model_fields:
            if name in model.model_fields_set:
                field = type(model).model_construct({name}, **{name: getattr(model, name)})
                try:
                    values |= resolve_fields(field, cls, context)
                except ResolutionException as error:
                    mistakes.append(_mistake_of(error, name))
        try:
            component = cls(**values)
        except ValidationError as error:
            component = cls.model_construct(**values)
            mistakes += [
                Mistake(("attributes", *each["loc"]), f"is wrong: {each['msg']}.")
                for each in error.errors()
                if each["type"] != "missing"  # since it is wrong, which is known
            ]
        component._unresolved = mistakes
        return component

    def contradictions(self, project_root: Path) -> Iterator[Mistake]:
        """What in the YAML does not fit the rest of it, or the project; here, nothing.

        A field that is wrong itself is not there: the search ends where it would be read.

        Args:
            project_root: The folder of the Dagster project.
        """
        yield from ()


def checked(kind: Any, must_be: str, **documentation: Any) -> dg.Resolver:
    """Takes a value of a kind, or a template for one.

    Args:
        kind: A type, with all that Pydantic checks of the value.
        must_be: The kind in words, for the error: what follows "must be".
        documentation: The field's `description` and `examples`, for its schema.

    Raises:
        ValueError: Only when a value is resolved: it is of another kind.
    """

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


def list_its_items(schema: dict[str, Any]) -> None:
    """Leave a template for a whole list out of its schema.

    With two alternatives, `dg check yaml` says of a mistake in an item only that the list has one.

    Args:
        schema: The JSON schema of a field that takes a list or a template; it is changed in place.
    """
    [items] = [each for each in schema.pop("anyOf") if each["type"] == "array"]
    schema.update(items)


class _Lenient(BaseModel):
    """A model that accepts all that is given: Dagster does not report mistakes as clearly."""

    _given: Any = PrivateAttr(None)

    @model_validator(mode="wrap")
    @classmethod
    def _accept(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            accepted = validate(given)
        except ValidationError:
            accepted = cls.model_construct()
        accepted._given = given
        return accepted

    @classmethod
    def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        """The schema; one that accepts all if `load` reports the mistakes right afterwards."""
        if is_checking_definitions():
            return {}
        return super().model_json_schema(*arguments, **options)


@functools.cache
def _lenient(model: type[BaseModel]) -> type[BaseModel]:
    return create_model(model.__name__, __base__=(_Lenient, model))


def _given(attributes: BaseModel | None) -> Any:
    if isinstance(attributes, _Lenient):
        return attributes._given
    return attributes and attributes.model_dump(exclude_unset=True)


def _valid_part(
    model: type[BaseModel], attributes: Mapping[str, Any], mistakes: Iterable[Mistake]
) -> BaseModel:
    """The attributes without those that are wrong."""
    right = attributes.keys() - {mistake.field for mistake in mistakes}
    values = {
        name: TypeAdapter(info.rebuild_annotation()).validate_python(attributes[info.alias or name])
        for name, info in model.model_fields.items()
        if (info.alias or name) in right
    }
    return model.model_construct({*values}, **values)


def _errors_in(document: YamlDocument) -> tuple[str, ...]:
    component, (content, positions), context = document
    if not issubclass(component, CheckedComponent):
        mistakes = mistakes_in(content, component.get_model_cls())
        return tuple(mistake.located(positions) for mistake in mistakes)
    try:
        component._load(content, positions, context)
    except DefsYamlError as error:
        return error.errors
    return ()


def _attributes_of(component: type[dg.Component] | None) -> type[BaseModel] | None:
    """What `attributes` of a component may hold."""
    if component is not None and issubclass(component, CheckedComponent):
        return component.model()
    return component.get_model_cls() if component is not None else None


def _mistake_of(error: ResolutionException, name: str) -> Mistake:
    """What Dagster says of a field that it cannot resolve, without its picture and traceback."""
    text = str(error)
    located = re.match(r".+:\d+ - (.+)\n", text)
    place = located[1].split(".") if located else ["attributes", name]
    reasons = re.findall(r"^[\w.]+: (.+)", text, re.MULTILINE) or text.splitlines()
    problem = reasons[-1]
    if not problem.startswith("must be "):  # as that of a `checked` field does
        problem = f"could not be resolved: {problem}"
    return Mistake(tuple(int(part) if part.isdigit() else part for part in place), problem)


def check_files(folder: Path, package: str) -> None:
    """Refuse the mistakes in `defs.yaml` files that keep Dagster from loading any component.

    Others are left to `load`, which finds more of them.

    Args:
        folder: The folder with all definitions.
        package: Its name as a Python package.

    Raises:
        DefsYamlError: There are such mistakes. It names the others, too.
    """
    errors: list[str] = []
    are_left = True
    for file in _files(folder):
        module = ".".join([package, *file.parent.relative_to(folder).parts])
        try:
            contents = parse_yamls_with_source_position(file.read_text("utf-8"), str(file))
        except Exception as error:  # of the YAML's parser, or of what makes values of it
            errors.append(_unparsable(file, error))
            are_left = False
            continue
        if not contents:
            errors.append(f"{file}:1: The file holds no component. Add one, or delete the file.")
            are_left = False
        for document, positions in contents:
            component, mistakes = _component(document, module)
            mistakes += mistakes_in(document, _attributes_of(component))
            errors += [mistake.located(positions) for mistake in mistakes]
            is_checked = component is not None and issubclass(component, CheckedComponent)
            are_left &= all(is_checked and mistake.field is not None for mistake in mistakes)
    if not are_left:
        raise DefsYamlError(*errors)


def _files(folder: Path) -> Iterator[Path]:
    """The files that Dagster reads."""
    for each in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())]):
        file = find_defs_or_component_yaml(each)
        if file is not None and not any(
            part.startswith(".") for part in each.relative_to(folder).parts
        ):
            yield file


def _unparsable(file: Path, error: Exception) -> str:
    if isinstance(error, TypeError):
        # YAML takes the braces for those of a mapping, which cannot be the name of a field.
        lines = enumerate(file.read_text("utf-8").splitlines(), 1)
        line = next((number for number, text in lines if re.match(r"[^#\"']*{{", text)), 1)
        return f"{file}:{line}: The document could not be parsed. Put quotes around each template."
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    problem = getattr(error, "problem", error)
    return f"{file}:{line}: The document could not be parsed: {problem}."


def _component(document: Any, package: str) -> tuple[type[dg.Component] | None, list[Mistake]]:
    """What the `type` of a document names or, if that is wrong, what was most likely meant."""
    if not isinstance(document, dict):
        return None, []
    field = "type" if "type" in document else nearest("type", document)
    name = document.get(field)
    if not isinstance(name, str):
        return None, []
    module, _, class_name = (package + name if name.startswith(".") else name).rpartition(".")
    try:
        found = _components(module)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and module.startswith(error.name or ".")):
            return None, []  # the module is faulty: Dagster shows the traceback
        found = {}
    if class_name in found:
        return found[class_name][1], []
    known = {**_components("dagster"), **found, **_components(__package__)}
    path, component = known.get(nearest(class_name, known), (None, None))
    choices = ", ".join(path for path, _ in _components(__package__).values())
    advice = did_you_mean(path) or f" The components here are: {choices}."
    problem = f"names no component; it is {name!r}."
    return component, [Mistake((field,), problem + advice)]


def _components(module: str) -> dict[str, tuple[str, type[dg.Component]]]:
    """The components in a module by their names there, each with its whole name."""
    return {
        name: (f"{module}.{name}", each)
        for name, each in (vars(import_module(module)) if module else {}).items()
        if isinstance(each, type) and issubclass(each, dg.Component)
    }
