"""Dagster Pipes for work that runs in Google Cloud.

`gcp_pipes.orchestrator` and `gcp_pipes.components` are for the Dagster project, and
`gcp_pipes.external` is for the code that Dagster calls. `copier update` brings fixes to all three.
"""
