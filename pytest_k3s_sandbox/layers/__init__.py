"""What is put around an unmodified node, one folder a layer."""
