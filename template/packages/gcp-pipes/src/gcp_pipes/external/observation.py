"""Reports asset observations, for which Pipes has no message of its own."""

from collections.abc import Mapping
from typing import Any

from dagster_pipes import PipesContext

from gcp_pipes.external.metadata import typed_metadata
from gcp_pipes.protocol import OBSERVATION


def report_asset_observation(
    pipes: PipesContext,
    asset_key: str | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    data_version: str | None = None,
) -> None:
    """Report an observation of an asset to Dagster.

    In a call for one partition, it is an observation of that partition.

    Args:
        pipes: The Pipes context.
        asset_key: The asset, which may be outside the step. By default, the asset of the call.
        metadata: By name, values or dictionaries with a `type` and a `raw_value`.
        data_version: The version of the data that was observed.

    Raises:
        dagster_pipes.DagsterPipesError: A metadata value is not JSON serializable, or does not have
            its type.
    """
    partition = None
    if pipes.is_partition_step:
        keys = pipes.partition_key_range
        partition = keys["start"] if keys["start"] == keys["end"] else None
    observation = {
        "asset_key": asset_key or pipes.asset_key,
        "metadata": typed_metadata(metadata or {}),
        "data_version": data_version,
        "partition": partition,
    }
    pipes.report_custom_message({OBSERVATION: observation})
