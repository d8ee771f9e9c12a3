"""From a specification to a running node."""
