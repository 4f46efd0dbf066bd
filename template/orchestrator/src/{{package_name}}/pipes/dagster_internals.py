"""The parts of Dagster that have no public name, imported here and nowhere else.

They are why pyproject.toml allows one minor version of Dagster at a time: when a new one moves a
name, `tests/test_dagster_internals.py` fails, and this is the file to mend.
"""

from collections.abc import Mapping

import dagster as dg
from dagster._core.definitions.data_version import compute_logical_data_version
from dagster._core.definitions.metadata import metadata_map_from_external
from dagster._core.definitions.resource_annotation import TreatAsResourceParam
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.execution.plan.execute_step import (
    _build_data_version_tags,
    _get_code_version,
    _get_input_provenance_data,
)
from dagster._core.pipes.context import build_external_execution_context_data

__all__ = [
    "NO_FURTHER_EVENT",
    "MaterializationTags",
    "TreatAsResourceParam",
    "build_external_execution_context_data",
    "metadata_map_from_external",
    "upstream_data_versions",
]

NO_FURTHER_EVENT: Mapping[str, dg.MetadataValue] = {
    SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: dg.MetadataValue.bool(True)
}
"""Metadata of a result whose asset has been reported already, and which downstream assets await.

Dagster makes events of a result: in a run of many partitions, one a partition. It makes none of one
that has this metadata, which it uses itself for assets that report their own observations.
"""


def upstream_data_versions(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
) -> dict[dg.AssetKey, str]:
    """The data versions that the assets upstream of the step's own had when the step began."""
    step = context.get_step_execution_context()
    return {
        upstream: found["data_version"].value
        for key in context.selected_asset_keys
        for upstream, found in _get_input_provenance_data(key, step).items()
        if upstream not in context.selected_asset_keys
    }


class MaterializationTags:
    """Makes the tags by which Dagster tells whether an asset is up to date.

    It gives them to each result that a step returns, but not to an event that a step logs itself.
    They are as `dagster._core.execution.plan.execute_step` makes them.
    """

    def __init__(
        self, context: dg.OpExecutionContext | dg.AssetExecutionContext, asset_key: dg.AssetKey
    ) -> None:
        step = context.get_step_execution_context()
        self._code_version = _get_code_version(asset_key, step)
        self._upstream = _get_input_provenance_data(asset_key, step)

    def make(self, data_version: dg.DataVersion | None) -> Mapping[str, str]:
        """The tags of one materialization.

        Args:
            data_version: What the function said; if it is None, the version follows from those of
                the code and of what is upstream.
        """
        upstream = {key: found["data_version"] for key, found in self._upstream.items()}
        return _build_data_version_tags(
            data_version or compute_logical_data_version(self._code_version, upstream),
            self._code_version,
            self._upstream,
            data_version is not None,
        )
