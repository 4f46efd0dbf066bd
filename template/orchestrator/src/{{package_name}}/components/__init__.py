"""Component types for `defs.yaml`: `dg list components` names them.

This package belongs to the template and is updated with it. Definitions live in `defs/`.
"""

from .cloud_function_asset import CloudFunctionAsset

__all__ = ["CloudFunctionAsset"]
