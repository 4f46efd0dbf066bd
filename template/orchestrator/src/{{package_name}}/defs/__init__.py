"""The project's own definitions: Dagster loads each module here, and each `defs.yaml`."""

from pathlib import Path

from gcp_pipes.components.checked_component import check_files

# Before Dagster reads the files: it stops at the first one that it cannot read.
check_files(Path(__file__).parent, __name__)
