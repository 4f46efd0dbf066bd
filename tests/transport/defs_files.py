"""Components in files `defs.yaml`, for the tests of components."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from conftest import QUIET
from dagster.components.testing import DefsFolderSandbox, create_defs_folder_sandbox
from gcp_pipes.components import CloudFunctionAsset

Resources = Mapping[str, Any]


@contextmanager
def loaded(
    attributes: str, component: type[dg.Component] = CloudFunctionAsset
) -> Iterator[tuple[Any, dg.Definitions]]:
    """The component in a `defs.yaml` with these attributes, and its definitions."""
    with create_defs_folder_sandbox() as sandbox:
        write(sandbox, attributes, component)
        with sandbox.load_component_and_build_defs(defs_path=Path("thing")) as found:
            yield found


def write(sandbox: DefsFolderSandbox, attributes: str, component: type[dg.Component]) -> None:
    """Write the `defs.yaml` of a component."""
    folder = sandbox.scaffold_component(component_cls=component, defs_path="thing")
    kind = f"{component.__module__}.{component.__qualname__}"
    (folder / "defs.yaml").write_text(f"type: {kind}\n\nattributes:\n{attributes}")


def assets(definitions: dg.Definitions) -> list[dg.AssetsDefinition]:
    """The assets among definitions."""
    return [each for each in definitions.assets or () if isinstance(each, dg.AssetsDefinition)]


def materialize(
    definitions: dg.Definitions,
    resources: Resources,
    instance: dg.DagsterInstance,
    run_config: Mapping[str, Any] | None = None,
    **options: Any,
) -> dg.ExecuteInProcessResult:
    """Materialize the assets among definitions."""
    return dg.materialize(
        assets(definitions),
        instance=instance,
        resources=resources,
        raise_on_error=False,
        run_config={**QUIET, **(run_config or {})},
        **options,
    )
