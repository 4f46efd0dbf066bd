"""Base of the components for assets that a task materializes, wherever it runs."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import dagster as dg
from pydantic import Field

from gcp_pipes.components.checked_component import CheckedComponent, checked, omit_template
from gcp_pipes.components.yaml_errors import MustBe, Place, did_you_mean, nearest, wrong_value
from gcp_pipes.orchestrator.code_references import link_to, task_reference
from gcp_pipes.orchestrator.external_client import log_custom_messages


class ExternalAssetScaffolder(dg.Scaffolder):
    """Writes a `defs.yaml` for `dg scaffold defs`."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        """Write it, with an asset and a task that have the name of its folder."""
        name = request.target_path.name
        dg.scaffold_component(request, {"assets": [{"key": name}], "task": name})


class ExternalAsset(CheckedComponent):
    """One asset, or several, materialized by a task that runs elsewhere.

    A subclass says where, by `_client_key`, `_find_target`, `_get_options` and `_tasks_folder`. The
    resource `settings` needs the attribute `lake_uri`.
    """

    _client_key: ClassVar[str]
    """The name of the resource that runs the task: a client of `gcp_pipes.orchestrator`."""

    assets: Annotated[
        list[dg.ResolvedAssetSpec],
        MustBe(must_be="a list of at least 1 item"),
        Field(min_length=1, json_schema_extra=omit_template),
        dg.Resolver.default(
            description="The assets that the task materializes. It must report each of them.",
            examples=[[{"key": "visits", "deps": ["people"], "kinds": ["deltalake"]}]],
        ),
    ]
    task: Annotated[
        str,
        checked(
            Annotated[str, Field(pattern=r"^[a-zA-Z]\w*$")],
            must_be="the name of a module in tasks/, without .py",
            description="The module in tasks/ that does the work.",
            examples=["visits"],
        ),
    ]
    event: Annotated[
        dict[str, Any],
        Field(default_factory=dict),
        checked(
            dict[str, Any],
            must_be="a mapping of input names to values",
            description="Inputs of the task, in addition to `dl_bucket`, the data lake.",
            examples=[{"rows": 1000}],
        ),
    ]
    configurable: Annotated[
        list[str],
        Field(default_factory=list),
        checked(
            list[str],
            must_be="a list of names",
            description="The inputs in `event` that can be changed when a run is launched, in the "
            "launchpad or by `just materialize --config`.",
            examples=[["rows"]],
        ),
    ]
    retry_timeout: Annotated[
        float | None,
        checked(
            Annotated[float | None, Field(ge=0)],
            must_be="a number of seconds, 0 or more",
            description="For how many seconds to retry a call that did not start; by default, 60.",
            examples=[300],
        ),
    ] = None
    checks: Annotated[
        list[dg.ResolvedAssetCheckSpec],
        Field(default_factory=list, json_schema_extra=omit_template),
        dg.Resolver.default(
            description="The asset checks that the task must report.",
            examples=[[{"name": "visitors_are_known", "asset": "visits"}]],
        ),
    ]
    pool: Annotated[
        str | None,
        checked(
            Annotated[str | None, Field(pattern=r"^\S+$")],
            must_be="the name of a pool, without spaces",
            description="The Dagster pool that limits how many of its steps run at once.",
            examples=["cloud_function"],
        ),
    ] = None
    run_tags: Annotated[
        list[str],
        Field(default_factory=list),
        checked(
            list[str],
            must_be="a list of names",
            description="The run's tags to send to the task, in pipes.extras['run_tags'].",
            examples=[["team"]],
        ),
    ]

    def get_asset_spec(self, spec: dg.AssetSpec, context: dg.ComponentLoadContext) -> dg.AssetSpec:
        """The definition of an asset: the one in the YAML, with a link to the task's source.

        Args:
            spec: The asset in the YAML.
            context: The location of the YAML.
        """
        source = self._task_source(context.project_root)
        if source is None or not source.is_file():
            return spec
        return spec.merge_attributes(metadata=link_to(task_reference(source)))

    def get_event(
        self, context: dg.AssetExecutionContext, partition_key: str | None
    ) -> Mapping[str, Any]:
        """The inputs of the task, a JSON object: `dl_bucket` and those in the YAML.

        Args:
            context: The context of the assets. Its resources include the `settings`.
            partition_key: The partition to run the task for, or None. In a run of many
                partitions, several threads call this method at the same time.
        """
        return {"dl_bucket": context.resources.settings.lake_uri, **self.event}

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, with the call that materializes them.

        Args:
            context: The location of the YAML.
        """
        project_root = context.project_root
        specs = [self.get_asset_spec(spec, context) for spec in self.assets]
        is_partitioned = any(spec.partitions_def for spec in specs)

        @dg.multi_asset(
            name=specs[0].key.to_python_identifier(),
            specs=specs,
            check_specs=self.checks,
            backfill_policy=dg.BackfillPolicy.single_run() if is_partitioned else None,
            pool=self.pool,
            config_schema={name: _config_field(self.event[name]) for name in self.configurable},
            required_resource_keys={"settings", self._client_key},
        )
        def run_task(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from self._run_task(context, project_root)

        return dg.Definitions(assets=[run_task])

    def _run_task(self, context: dg.AssetExecutionContext, project_root: Path) -> Iterator[Any]:
        """Run the task, once or for each partition, and yield the results that it reports."""
        client = getattr(context.resources, self._client_key)
        is_partitioned = context.assets_def.partitions_def is not None
        changed = context.op_execution_context.op_config or {}

        def event(partition_key: str | None) -> Mapping[str, Any]:
            return {**self.get_event(context, partition_key), **changed, "task": self.task}

        options: dict[str, Any] = {
            "context": context,
            "run_tags": self.run_tags,
            "retry_timeout": self.retry_timeout,
            **self._find_target(context.resources.settings, project_root),
            **self._get_options(is_partitioned=is_partitioned),
        }
        if is_partitioned:
            yield from client.run_partitions(event=event, **options)
            return
        done = client.run(event=event(None), **options)
        log_custom_messages(context, done)
        yield from done.get_results(implicit_materializations=client.implicit_materializations)

    def _find_target(self, settings: Any, project_root: Path) -> Mapping[str, Any]:
        """What runs the task, as arguments of the client."""
        raise NotImplementedError

    def _get_options(self, *, is_partitioned: bool) -> Mapping[str, Any]:
        """Further arguments of the client, from the fields of a subclass."""
        raise NotImplementedError

    def _tasks_folder(self, project_root: Path) -> Path:
        """The folder of the tasks, which does not exist if their sources are elsewhere."""
        raise NotImplementedError

    def _task_source(self, project_root: Path) -> Path | None:
        """The path of the task's source; None if its sources are elsewhere."""
        tasks = self._tasks_folder(project_root)
        return tasks / f"{self.task}.py" if tasks.is_dir() else None

    def _find_inconsistencies(self, project_root: Path) -> Iterator[tuple[Place, str]]:
        source = self._task_source(project_root)
        if source is not None and not source.is_file():
            tasks = sorted(path.stem for path in source.parent.glob("[!_]*.py"))
            folder = source.parent.relative_to(project_root.parent)
            meant = did_you_mean(nearest(self.task, tasks))
            yield (
                ("task",),
                f"is invalid. There is no task {self.task!r} in {folder}/. The tasks are: "
                f"{', '.join(tasks)}.{meant} Add it there, or name one of them.",
            )
        if "task" in self.event:
            yield ("event", "task"), "is not an input. Set `task` under `attributes` instead."
        for number, name in enumerate(self.configurable):
            if name not in self.event:
                yield (
                    ("configurable", number),
                    f"is invalid: {name!r} is not an input in `event`. Add it there, with its "
                    f"default.{did_you_mean(nearest(name, self.event))}",
                )
        keys = [spec.key for spec in self.assets]
        names = [key.to_user_string() for key in keys]
        if len(set(keys)) < len(keys):
            yield ("assets",), "must have each asset only once. Delete the duplicate."
        if len({spec.partitions_def for spec in self.assets}) > 1:
            yield (
                ("assets",),
                "must all have the same `partitions_def`: one call materializes them.",
            )
        for number, check in enumerate(self.checks):
            if not re.fullmatch(r"\w+", check.name, re.ASCII):
                must_be = "letters, digits and underscores"
                yield ("checks", number, "name"), wrong_value(must_be, check.name)
            if check.asset_key not in keys:
                name = check.asset_key.to_user_string()
                problem = f"is invalid: {name} is not one of the assets here: {', '.join(names)}."
                yield ("checks", number, "asset"), problem + did_you_mean(nearest(name, names))
        if len({check.key for check in self.checks}) < len(self.checks):
            yield ("checks",), "must have each check of an asset only once. Delete the duplicate."


def _config_field(default: Any) -> dg.Field:
    """The config of an input, which has the type of its value in the YAML."""
    types = {bool: dg.Bool, int: dg.Int, float: dg.Float, str: dg.String}
    return dg.Field(
        types.get(type(default), dg.Any),
        is_required=False,
        description=f"The default is {json.dumps(default)}.",
    )
