"""Clusters that outlive a command, and the processes that keep them."""
