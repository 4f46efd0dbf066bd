"""Component types for `defs.yaml`: `dg list components` names them.

`copier update` brings fixes to this package, and joins them with yours. Definitions live in
`defs/`.
"""

from .cloud_function_asset import CloudFunctionAsset

__all__ = ["CloudFunctionAsset"]
