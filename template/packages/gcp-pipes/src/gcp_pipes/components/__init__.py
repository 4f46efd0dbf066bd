"""Component types for `defs.yaml`: `dg list components` lists them."""

from gcp_pipes.components.cloud_function_asset import CloudFunctionAsset
from gcp_pipes.components.cloud_run_job_asset import CloudRunJobAsset

__all__ = ["CloudFunctionAsset", "CloudRunJobAsset"]
