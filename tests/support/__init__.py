"""What several test modules use: programs that stand in, fakes, readers of results."""
