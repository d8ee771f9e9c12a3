"""The pytest plugin: hooks, fixtures, markers, and the records of a test run."""
