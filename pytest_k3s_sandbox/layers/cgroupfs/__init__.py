"""The FUSE cgroup v1 filesystem."""
