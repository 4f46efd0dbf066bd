"""Dagster Pipes for Google Cloud Functions: the orchestrator's side.

This package belongs to the template and is updated with it. Definitions live in `defs/`.
"""

from .client import (
    PipesCloudFunctionClient,
    PipesCloudFunctionError,
    PipesCloudFunctionEventContextInjector,
)
from .message_reader import PipesCloudStorageMessageReader

__all__ = [
    "PipesCloudFunctionClient",
    "PipesCloudFunctionError",
    "PipesCloudFunctionEventContextInjector",
    "PipesCloudStorageMessageReader",
]
