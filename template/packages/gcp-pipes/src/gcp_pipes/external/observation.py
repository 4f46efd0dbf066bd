"""What a task learns of an asset without materializing it."""

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
    """Report an observation of an asset to Dagster, for which Pipes has no message of its own.

    It takes what `PipesContext.report_asset_materialization` takes. In the call for a partition,
    the observation is of that partition.

    Args:
        pipes: The Pipes context.
        asset_key: The asset, which need not be one of the step; the step's own unless given.
        metadata: Values as they are, or each with its Pipes type.
        data_version: The version of the data that was seen.

    Raises:
        dagster_pipes.DagsterPipesError: A metadata value has no JSON form, or is not of its type.
    """
    pipes.report_custom_message(
        {
            OBSERVATION: {
                "asset_key": asset_key or pipes.asset_key,
                "metadata": typed_metadata(metadata or {}),
                "data_version": data_version,
                "partition": _partition_key(pipes),
            }
        }
    )


def _partition_key(pipes: PipesContext) -> str | None:
    """The partition of the call, if it is for one and no more."""
    if not pipes.is_partition_step:
        return None
    keys = pipes.partition_key_range
    return keys["start"] if keys["start"] == keys["end"] else None
