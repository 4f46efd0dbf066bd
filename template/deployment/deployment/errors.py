"""The error that all deployment commands report."""


class DeploymentError(Exception):
    """A deployment command failed: why, and what to do."""
