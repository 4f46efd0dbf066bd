"""The parts of Dagster that have no public name, imported here and nowhere else.

They are why pyproject.toml allows one minor version of Dagster at a time: when a new one moves a
name, this is the file to mend.
"""

from dagster._core.definitions.resource_annotation import TreatAsResourceParam
from dagster._core.pipes.context import build_external_execution_context_data

__all__ = ["TreatAsResourceParam", "build_external_execution_context_data"]
