"""The layers' folders, each with the fixture that brings its layer up.

The plugin makes the fixtures from this list. It is imported in every project with the plugin, and the
declarations are not.
"""

from __future__ import annotations

from typing import NamedTuple


class Fixture(NamedTuple):
    """A layer's fixture.

    Attributes:
        name: Its name.
        text: What it gives, for ``pytest --fixtures`` and the reference.
    """

    name: str
    text: str


FOLDERS = {
    "workarounds": Fixture(
        "k3s_workarounds",
        "The layer of the older workarounds, up in the sandbox: kmsg, kernel tunables, OCI spec.",
    ),
    "cgroupfs": Fixture("k3s_cgroupfs", "The layer of the FUSE cgroup v1 filesystem, up in the sandbox."),
    "interceptor": Fixture("k3s_interceptor", "The layer of the ptrace interceptor, proven in the sandbox."),
    "cni": Fixture("k3s_fake_cni", "The layer of the fake CNI plugin, installed in the sandbox."),
    "pod_network": Fixture("k3s_pod_network", "The layer of the pod network, up in the sandbox."),
    "services": Fixture("k3s_services", "The layer of the services' rules, up in the sandbox."),
}
"""The fixtures by the layers' folders, in the order in which a full stack has the layers."""
