"""Dagster Pipes for Google Cloud Functions: the orchestrator's side.

`copier update` brings fixes to this package, and joins them with yours. Definitions live in
`defs/`.
"""

from .client import PipesCloudFunctionClient, PipesCloudFunctionEventContextInjector
from .message_reader import PipesCloudStorageMessageReader
from .verdict import PipesCloudFunctionError

__all__ = [
    "PipesCloudFunctionClient",
    "PipesCloudFunctionError",
    "PipesCloudFunctionEventContextInjector",
    "PipesCloudStorageMessageReader",
]
