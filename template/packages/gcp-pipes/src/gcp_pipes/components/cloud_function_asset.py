"""Assets that the cloud function materializes, defined by a few lines of YAML."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import dagster as dg
from pydantic import Field

from gcp_pipes.components.checked_component import CheckedComponent, checked, list_its_items
from gcp_pipes.components.yaml_errors import Mistake, MustBe, did_you_mean, nearest
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudFunctionError
from gcp_pipes.orchestrator.client import log_custom_messages
from gcp_pipes.orchestrator.urls import sibling_url

_TASKS = Path("cloud_function", "tasks")  # beside the folder of the Dagster project


class FunctionSettings(Protocol):
    """What the component needs of the project's `settings`, which is a resource.

    Attributes:
        function_url: The URL of the function that is called if the YAML names no other.
        lake_uri: The data lake: `gs://bucket`, or the absolute path of a local folder.
    """

    @property
    def function_url(self) -> str: ...  # noqa: D102

    @property
    def lake_uri(self) -> str: ...  # noqa: D102


class CloudFunctionAssetScaffolder(dg.Scaffolder):
    """Writes the `defs.yaml` of an asset with the name of its folder."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        """Write it, for `dg scaffold defs`.

        Args:
            request: Where to write it: a folder, after whose name the asset and its task are named.
        """
        name = request.target_path.name
        dg.scaffold_component(request, {"assets": [{"key": name}], "task": name})


@dg.scaffold_with(CloudFunctionAssetScaffolder)
class CloudFunctionAsset(CheckedComponent):
    """One asset, or several, materialized by a call of the cloud function.

    Of a partitioned asset, each partition has a call of its own. A backfill is one run, in which
    at most `max_in_flight` calls are made at the same time.

    A subclass can override `get_asset_spec` and `get_event`.
    """

    assets: Annotated[
        list[dg.ResolvedAssetSpec],
        MustBe(must_be="a list of at least 1 item"),
        Field(min_length=1, json_schema_extra=list_its_items),
        dg.Resolver.default(
            description="What the task materializes, and has to report as materialized.",
            examples=[[{"key": "visits", "deps": ["people"], "kinds": ["deltalake"]}]],
        ),
    ]
    task: Annotated[
        str,
        checked(
            Annotated[str, Field(pattern=r"^[a-zA-Z]\w*$")],
            must_be="the name of a module in cloud_function/tasks/, without .py",
            description="The module in cloud_function/tasks/ that does the work.",
            examples=["visits"],
        ),
    ]
    event: Annotated[
        dict[str, Any],
        Field(default_factory=dict),
        checked(
            dict[str, Any],
            must_be="the names of inputs, each with its value",
            description="Inputs of the task, beside `dl_bucket`, the data lake.",
            examples=[{"rows": 1000}],
        ),
    ]
    function: Annotated[
        str | None,
        checked(
            Annotated[str | None, Field(pattern=r"^(https://.+|[a-z][a-z0-9-]*)$")],
            must_be="an https URL, or the name of a function",
            description="Another function than that of FUNCTION_URL: its https URL, or its name if "
            "it is in the same region and project. On your own machine, there is but one.",
            examples=["reports", "https://reports-abc123-ez.a.run.app"],
        ),
    ] = None
    timeout: Annotated[
        float | None,
        checked(
            Annotated[float | None, Field(gt=0, le=3600)],
            must_be="a number of seconds, more than 0 and up to 3600",
            description="The function's own timeout in seconds, if it is not FUNCTION_TIMEOUT.",
            examples=[540],
        ),
    ] = None
    retry_timeout: Annotated[
        float | None,
        checked(
            Annotated[float | None, Field(ge=0)],
            must_be="a number of seconds, 0 or more",
            description="Seconds for which a call is tried again that the function did not take; "
            "60 unless given.",
            examples=[300],
        ),
    ] = None
    checks: Annotated[
        list[dg.ResolvedAssetCheckSpec],
        Field(default_factory=list, json_schema_extra=list_its_items),
        dg.Resolver.default(
            description="The asset checks that the task has to report.",
            examples=[[{"name": "visitors_are_known", "asset": "visits"}]],
        ),
    ]
    max_in_flight: Annotated[
        int,
        checked(
            Annotated[int, Field(ge=1, le=1000)],
            must_be="a number from 1 to 1000",
            description="How many partitions are called for at the same time, in one run.",
            examples=[100],
        ),
    ] = 10
    pool: Annotated[
        str | None,
        checked(
            Annotated[str | None, Field(pattern=r"^\S+$")],
            must_be="the name of a pool, without blanks",
            description="The Dagster pool that bounds how many steps call the function at once.",
            examples=["cloud_function"],
        ),
    ] = None
    run_tags: Annotated[
        list[str],
        Field(default_factory=list),
        checked(
            list[str],
            must_be="a list of names",
            description="Tags of the run, which the task finds in pipes.extras['run_tags'].",
            examples=[["team"]],
        ),
    ]

    def get_asset_spec(self, spec: dg.AssetSpec, context: dg.ComponentLoadContext) -> dg.AssetSpec:
        """The definition of an asset; here, that of the YAML, with a link to the task's source.

        Args:
            spec: The asset as the YAML has it.
            context: Where the YAML is.
        """
        source = self._task_source(context.project_root)
        if source is None or not source.is_file():
            return spec
        reference = dg.LocalFileCodeReference(
            file_path=str(source), line_number=_line_of_run(source), label="task"
        )
        references = dg.CodeReferencesMetadataValue(code_references=[reference])
        return spec.merge_attributes(metadata={"dagster/code_references": references})

    def get_event(
        self, context: dg.AssetExecutionContext, partition_key: str | None
    ) -> Mapping[str, Any]:
        """The inputs of the task, a JSON object; here, `dl_bucket` and those of the YAML.

        Args:
            context: The context of the assets. Among its resources are the `settings`.
            partition_key: The partition that the call is for; None if there are no partitions. Of
                many, several threads ask at once.
        """
        return {"dl_bucket": context.resources.settings.lake_uri, **self.event}

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, with the call that materializes them.

        Args:
            context: Where the YAML is.
        """
        specs = [self.get_asset_spec(spec, context) for spec in self.assets]
        is_partitioned = any(spec.partitions_def for spec in specs)

        @dg.multi_asset(
            name=specs[0].key.to_python_identifier(),
            specs=specs,
            check_specs=self.checks,
            backfill_policy=dg.BackfillPolicy.single_run() if is_partitioned else None,
            pool=self.pool,
            required_resource_keys={"settings", "pipes_function_client"},
        )
        def call_function(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from self._call_function(context)

        return dg.Definitions(assets=[call_function])

    def _call_function(self, context: dg.AssetExecutionContext) -> Iterator[Any]:
        """Call the function, for each partition if there are any, and yield what it reports."""
        client: PipesCloudFunctionClient = context.resources.pipes_function_client
        function_url = self._function_url(context.resources.settings)
        if context.assets_def.partitions_def is None:
            done = client.run(
                context=context,
                function_url=function_url,
                event=self._event(context, None),
                run_tags=self.run_tags,
                timeout=self.timeout,
                retry_timeout=self.retry_timeout,
            )
            log_custom_messages(context, done)
            yield from done.get_results(implicit_materializations=client.implicit_materializations)
        else:
            yield from client.run_partitions(
                context=context,
                function_url=function_url,
                event=lambda partition_key: self._event(context, partition_key),
                run_tags=self.run_tags,
                max_in_flight=self.max_in_flight,
                timeout=self.timeout,
                retry_timeout=self.retry_timeout,
            )

    def _function_url(self, settings: FunctionSettings) -> str:
        if self.function is None:
            return settings.function_url
        if self.function.startswith("https://"):
            return self.function
        if url := sibling_url(settings.function_url, self.function):
            return url
        raise PipesCloudFunctionError(
            f"FUNCTION_URL must be a function's own URL for that of {self.function!r} to follow "
            f"from it; it is {settings.function_url!r}. Set it in orchestrator/.env, or name the "
            "other function by its https URL.",
            allow_retries=False,
        )

    def _event(
        self, context: dg.AssetExecutionContext, partition_key: str | None
    ) -> Mapping[str, Any]:
        return {**self.get_event(context, partition_key), "task": self.task}

    def _task_source(self, project_root: Path) -> Path | None:
        """Where the task's source is to be; None if the function's sources are elsewhere."""
        tasks = project_root.parent / _TASKS
        if self.function is not None or not tasks.is_dir():
            return None
        return tasks / f"{self.task}.py"

    def contradictions(self, project_root: Path) -> Iterator[Mistake]:
        """What in the YAML does not fit the rest of it, or the function.

        Args:
            project_root: The folder of the Dagster project.
        """
        source = self._task_source(project_root)
        if source is not None and not source.is_file():
            tasks = sorted(path.stem for path in source.parent.glob("[!_]*.py"))
            meant = did_you_mean(nearest(self.task, tasks))
            yield Mistake(
                ("task",),
                f"is wrong. There is no task {self.task!r} in {_TASKS}/. The tasks are: "
                f"{', '.join(tasks)}.{meant} Add it there, or name one of them.",
            )
        if "task" in self.event:
            yield Mistake(
                ("event", "task"),
                "is not an input: the task is named by `task`, beneath `attributes`.",
            )
        keys = [spec.key for spec in self.assets]
        names = [key.to_user_string() for key in keys]
        if len(set(keys)) < len(keys):
            yield Mistake(("assets",), "must have each asset but once. Delete the other.")
        if len({spec.partitions_def for spec in self.assets}) > 1:
            yield Mistake(
                ("assets",), "must all have the same `partitions_def`: they are made by one call."
            )
        for number, check in enumerate(self.checks):
            if not re.fullmatch(r"\w+", check.name, re.ASCII):
                yield Mistake(
                    ("checks", number, "name"),
                    f"must have letters, digits and underscores; {check.name!r} is no name.",
                )
            if check.asset_key not in keys:
                name = check.asset_key.to_user_string()
                yield Mistake(
                    ("checks", number, "asset"),
                    f"is wrong: {name} is none of the assets here: {', '.join(names)}."
                    + did_you_mean(nearest(name, names)),
                )
        if len({check.key for check in self.checks}) < len(self.checks):
            yield Mistake(
                ("checks",), "must have each check of an asset but once. Delete the other."
            )


def _line_of_run(source: Path) -> int:
    """The line, from 1, with the function that a task is."""
    lines = source.read_text(encoding="utf-8").splitlines()
    return next((n for n, line in enumerate(lines, 1) if line.startswith("def run(")), 1)
