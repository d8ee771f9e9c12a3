"""Code for experiments and benchmarks alone: nodes that may fail, and records of how far they get."""
