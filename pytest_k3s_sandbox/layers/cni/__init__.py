"""The fake CNI plugin and its configuration list."""
