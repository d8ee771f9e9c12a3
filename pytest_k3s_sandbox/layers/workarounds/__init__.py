"""The older workarounds: kmsg, sysctl, mount propagation, OCI spec."""
