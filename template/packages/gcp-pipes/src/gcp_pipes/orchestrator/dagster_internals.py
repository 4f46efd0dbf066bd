"""The parts of Dagster that have no public name, imported only here.

A new minor version of Dagster may move or change them, so pyproject.toml allows only one at a time.
If `tests/orchestrator/test_dagster_internals.py` fails with a new version, fix this file.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import click
import dagster as dg
from dagster_pipes import PipesMessage
from pydantic import BaseModel

try:
    from dagster._core.definitions.data_version import compute_logical_data_version
    from dagster._core.definitions.metadata import metadata_map_from_external
    from dagster._core.definitions.partitions.utils import get_tags_from_multi_partition_key
    from dagster._core.definitions.resource_annotation import TreatAsResourceParam
    from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
    from dagster._core.events import EngineEventData
    from dagster._core.execution.context.invocation import BaseDirectExecutionContext
    from dagster._core.execution.plan.execute_step import (
        _build_data_version_tags,
        _get_code_version,
        _get_input_provenance_data,
    )
    from dagster._core.pipes.context import build_external_execution_context_data
    from dagster.components.core.component_tree import ComponentTree
    from dagster.components.core.decl import YamlBackedComponentDecl
    from dagster.components.core.defs_module import (
        ComponentFileModel,
        ComponentPostProcessingModel,
        find_defs_or_component_yaml,
    )
    from dagster.components.resolved.base import (
        _DERIVED_MODEL_REGISTRY,
        _get_annotations,
        _get_resolver,
        resolve_fields,
    )
    from dagster.components.resolved.errors import ResolutionException
    from dagster_shared.yaml_utils import parse_yamls_with_source_position
    from dagster_shared.yaml_utils.source_position import (
        SourcePositionTree,
        ValueAndSourcePositionTree,
    )
except ImportError as error:
    raise ImportError(
        f"Dagster {dg.__version__} has moved a part that has no public name: {error}. Install a "
        f"version that orchestrator/pyproject.toml allows, or fix the imports in {__file__}."
    ) from error

__all__ = [
    "NO_FURTHER_EVENT",
    "ComponentFileModel",
    "ComponentPostProcessingModel",
    "MessageHandler",
    "ResolutionException",
    "SourcePositionTree",
    "TreatAsResourceParam",
    "ValueAndSourcePositionTree",
    "YamlDocument",
    "YamlField",
    "build_external_execution_context_data",
    "engine_event_metadata",
    "error_classes",
    "find_defs_or_component_yaml",
    "is_called_directly",
    "is_checking_definitions",
    "keys_of_outputs",
    "materialization_tags",
    "may_resume_runs",
    "metadata_map_from_external",
    "parse_yamls_with_source_position",
    "report_engine_event",
    "resolution_error",
    "resolve_fields",
    "start_count",
    "upstream_data_versions",
    "yaml_document",
    "yaml_documents",
    "yaml_fields",
]

NO_FURTHER_EVENT: Mapping[str, dg.MetadataValue] = {
    SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: dg.MetadataValue.bool(True)
}
"""Metadata of a result whose events are in the event log already.

Downstream assets wait for the result. Dagster would log an event for each partition of it, except
if it has this metadata, which Dagster itself uses for assets that report their own observations.
"""


class MessageHandler(dg.PipesMessageHandler):
    """Dagster's message handler, which also works without a run: there is no event log then."""

    def handle_message(self, message: PipesMessage) -> None:
        """Handle a message. Without a run, do not log the function's exception as an event."""
        if message["method"] == "closed" and is_called_directly(self._context):
            message = {**message, "params": {}}
        super().handle_message(message)

    def report_pipes_framework_exception(self, origin: str, exc_info: Any) -> None:
        """Log an error of the message reader."""
        if is_called_directly(self._context):
            self._context.log.error(f"[pipes] framework exception in {origin}: {exc_info[1]}")
        else:
            super().report_pipes_framework_exception(origin, exc_info)


def is_called_directly(context: object) -> bool:
    """Whether an asset or op is called like a function, without a run, as in a unit test."""
    return isinstance(context, BaseDirectExecutionContext)


def keys_of_outputs(context: dg.OpExecutionContext) -> set[dg.AssetKey | dg.AssetCheckKey]:
    """The selected assets and checks that are outputs of the step itself.

    An op in a graph-backed asset has only some of the asset's outputs, or none.
    """
    if not context.has_assets_def:
        return set()
    selected: set[dg.AssetKey | dg.AssetCheckKey] = {
        *context.selected_asset_keys,
        *context.selected_asset_check_keys,
    }
    if is_called_directly(context):
        return selected
    layer, node = context.job_def.asset_layer, context.node_handle
    outputs = context.op_def.output_defs
    return selected & {layer.get_entity_key_for_node_output(node, each.name) for each in outputs}


def upstream_data_versions(context: dg.OpExecutionContext) -> dict[dg.AssetKey, str]:
    """The data versions that the upstream assets had when the step started."""
    if is_called_directly(context):
        return {}
    step = context.get_step_execution_context()
    return {
        upstream: found["data_version"].value
        for key in context.selected_asset_keys
        for upstream, found in _get_input_provenance_data(key, step).items()
        if upstream not in context.selected_asset_keys
    }


def materialization_tags(
    context: dg.OpExecutionContext,
    asset_key: dg.AssetKey,
    partition_key: str,
    data_version: dg.DataVersion | None,
) -> Mapping[str, str]:
    """The tags by which Dagster determines whether an asset is up to date.

    `dagster._core.execution.plan.execute_step` adds them to the results of a step, but not to
    events that the step logs itself. If assets of the step depend on each other, log their events
    in that order. Without a `data_version`, it is computed from the code version and upstream.
    """
    if is_called_directly(context):
        return {} if data_version is None else {"dagster/data_version": data_version.value}
    step = context.get_step_execution_context()
    step.wipe_input_asset_version_info(asset_key)  # for the assets that depend on it
    code_version = _get_code_version(asset_key, step)
    upstream = _get_input_provenance_data(asset_key, step)
    versions = {key: found["data_version"] for key, found in upstream.items()}
    tags = _build_data_version_tags(
        data_version or compute_logical_data_version(code_version, versions),
        code_version,
        upstream,
        data_version is not None,
    )
    if isinstance(partition_key, dg.MultiPartitionKey):
        tags.update(get_tags_from_multi_partition_key(partition_key))
    return tags


def report_engine_event(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    step_key: str,
    text: str,
    metadata: Mapping[str, dg.MetadataValue],
) -> None:
    """Log an event that is no log line, in any thread."""
    instance.report_engine_event(text, run, EngineEventData(metadata), step_key=step_key)


def engine_event_metadata(entry: dg.EventLogEntry) -> Mapping[str, dg.MetadataValue]:
    """The metadata of an engine event; empty for other events."""
    data = entry.dagster_event and entry.dagster_event.event_specific_data
    return data.metadata if isinstance(data, EngineEventData) else {}


def error_classes(entry: dg.EventLogEntry) -> list[str]:
    """The names of the classes of an event's error and its causes; empty without an error."""
    error = getattr(entry.dagster_event and entry.dagster_event.event_specific_data, "error", None)
    names = []
    while error is not None:
        names.append(str(error.cls_name))
        error = error.cause
    return names


def may_resume_runs(instance: dg.DagsterInstance) -> bool:
    """Whether Dagster's run monitoring resumes runs whose process is gone."""
    return instance.run_monitoring_enabled and instance.run_monitoring_max_resume_run_attempts > 0


def start_count(instance: dg.DagsterInstance, run_id: str, step_key: str) -> int:
    """How often a step has been started in a run."""
    return sum(each.attempts or 0 for each in instance.get_run_step_stats(run_id, [step_key]))


class YamlDocument(NamedTuple):
    """A document in a `defs.yaml`, and the context in which Dagster loads its component."""

    component: type[dg.Component]
    content: ValueAndSourcePositionTree
    context: dg.ComponentLoadContext


def yaml_document(context: dg.ComponentLoadContext) -> YamlDocument | None:
    """The document that a component is loaded from; None if it is not loaded from a file."""
    declaration = context.component_decl
    if isinstance(declaration, YamlBackedComponentDecl) and declaration.source_tree is not None:
        return YamlDocument(declaration.component_type, declaration.source_tree, context)
    return None


def yaml_documents(tree: ComponentTree) -> Iterator[YamlDocument]:
    """The documents in all `defs.yaml` files of a project."""
    for declaration in tree.find_root_decl().iterate_all_component_decls():
        if isinstance(declaration, YamlBackedComponentDecl) and declaration.source_tree is not None:
            context = declaration.context_with_component_injected_scope.with_source_position_tree(
                declaration.source_tree.source_position_tree
            )
            yield YamlDocument(
                declaration.component_type,
                declaration.source_tree,
                dg.ComponentLoadContext.from_decl_load_context(context, declaration),
            )


def is_checking_definitions() -> bool:
    """Whether this is `dg check defs`, which stops if its own check finds an error in a file."""
    command = click.get_current_context(silent=True)
    return command is not None and command.command_path.endswith(" check defs")


def resolution_error(error: ResolutionException) -> tuple[tuple[str | int, ...], str]:
    """The place in a document, if the error names it, and the reason, without the traceback."""
    text = str(error)
    located = re.match(r".+:\d+ - (.+)\n", text)
    path = located[1].split(".") if located else []
    reasons = re.findall(r"^[\w.]+: (.+)", text, re.MULTILINE) or text.splitlines()
    return tuple(int(part) if part.isdigit() else part for part in path), reasons[-1]


class YamlField(NamedTuple):
    """What a field in a `defs.yaml` accepts."""

    kind: Any
    """The declared type. Dagster also accepts text in every field, for templates."""
    is_required: bool
    takes_template: bool
    needs_template: bool
    """Whether only a template can make its value."""


@functools.cache
def yaml_fields(model: type[BaseModel]) -> Mapping[str, YamlField]:
    """The fields of a part of a `defs.yaml`, by name, as Dagster's model of the part has them."""
    declared = {derived: resolvable for resolvable, derived in _DERIVED_MODEL_REGISTRY.items()}
    resolvable = next((declared[each] for each in model.__mro__ if each in declared), None)
    if resolvable is None:
        return {
            info.alias or name: YamlField(
                info.rebuild_annotation(), info.is_required(), False, False
            )
            for name, info in model.model_fields.items()
        }
    fields = {}
    for name, annotation in _get_annotations(resolvable).items():
        resolver = _get_resolver(annotation.type, name)
        name = resolver.model_field_name or name
        info = model.model_fields[name]
        kind = resolver.model_field_type or annotation.type
        for constraint in info.metadata:
            kind = Annotated[kind, constraint]
        fields[info.alias or name] = YamlField(
            kind,
            is_required=info.is_required(),
            takes_template=True,
            needs_template=any(map(_is_injected, _union_members(annotation.type))),
        )
    return fields


def _is_injected(annotation: Any) -> bool:
    """Whether values are objects of Dagster, which in YAML only a template can make."""
    kind, *metadata = get_args(annotation) or [annotation]
    return any(
        isinstance(each, dg.Resolver) and each.is_default and each.model_field_type is not None
        for each in metadata
    ) and any(
        getattr(member, "__module__", "").startswith("dagster.") for member in _union_members(kind)
    )


def _union_members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
