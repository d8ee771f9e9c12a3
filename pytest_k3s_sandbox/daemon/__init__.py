"""Clusters that outlive a command, and the daemon processes that keep them."""
