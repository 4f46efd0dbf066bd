"""The Dagster project: `definitions` is what Dagster loads."""
