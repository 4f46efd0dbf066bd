"""Many partitions in one step: a call for each, and several in flight at the same time."""

from gcp_pipes.orchestrator.partitions.message_handler import PartitionMessageHandler
from gcp_pipes.orchestrator.partitions.results import PartitionEvent
from gcp_pipes.orchestrator.partitions.run import run_partitions

__all__ = ["PartitionEvent", "PartitionMessageHandler", "run_partitions"]
