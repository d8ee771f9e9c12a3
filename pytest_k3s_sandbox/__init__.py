"""Kubernetes nodes in sandboxes whose root is 9p, as pytest fixtures."""

__version__ = "0.1.0"
