"""What pytest loads: hooks, fixtures, markers, and what they record of a test run."""
