"""What all that deploys can fail with."""


class DeploymentError(Exception):
    """A deployment cannot go on: what happened, and what to do."""
