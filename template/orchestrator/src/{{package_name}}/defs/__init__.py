"""The project's own definitions: Dagster loads each module here, and each `defs.yaml`."""
