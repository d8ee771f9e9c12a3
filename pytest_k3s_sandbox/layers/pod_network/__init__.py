"""The network of pods: a CNI plugin that makes interfaces and routes, and its configuration list."""
