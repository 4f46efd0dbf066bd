"""The project's own definitions: Dagster loads each module here, and each `defs.yaml`."""

from pathlib import Path

from ..components.checked_component import check_files

check_files(Path(__file__).parent, __name__)
