"""What only experiments and benchmarks need: nodes that may fail, and what becomes of them."""
