"""The research experiments, each a test module and a README with question, method and result."""
