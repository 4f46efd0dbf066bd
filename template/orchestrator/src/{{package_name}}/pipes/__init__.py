"""Dagster Pipes for Google Cloud Functions: the orchestrator's side.

`copier update` brings fixes to this package, and joins them with yours. Definitions live in
`defs/`.
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
