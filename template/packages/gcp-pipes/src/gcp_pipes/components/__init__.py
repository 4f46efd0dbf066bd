"""Component types for `defs.yaml`: `dg list components` lists them."""

from gcp_pipes.components.cloud_function_asset import CloudFunctionAsset

__all__ = ["CloudFunctionAsset"]
