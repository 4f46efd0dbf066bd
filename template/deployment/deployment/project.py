"""Where the parts of this project are, and the programs that it needs."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ORCHESTRATOR = PROJECT / "orchestrator"

UV = os.environ.get("UV", "uv")  # `uv run` sets it to its own path
