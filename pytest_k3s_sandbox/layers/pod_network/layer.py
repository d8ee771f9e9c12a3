"""The layer that gives pods interfaces, addresses and routes.

Each pod has a veth pair. Packets of a pod go to the node, which routes them, also to a pod beside it. A
bridge would forward frames that the node's rules for packets never see.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pytest_k3s_sandbox.errors import LayerError, SandboxError
from pytest_k3s_sandbox.layers.addresses import POD_RANGE, pods_of
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.layers.pod_network import PLUGIN
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Completed, Sandbox
from pytest_k3s_sandbox.sandbox.trees import staged

FOLDER: Final = f"{STATE_DIR}/pod-network"
"""The layer's folder inside, with the configuration list for containerd."""

STATE: Final = "/run/k3s-sandbox/pod-network"
"""The folder inside with the plugin's allocations: on a tmpfs, since no pod outlives the sandbox."""

NETWORK: Final = "k3s-sandbox"
"""The network's name."""

VERSION: Final = "1.0.0"
"""The list's version. From 1.1.0 on, containerd runs STATUS for every status request of the kubelet."""

_UP: Final = """
set -e
mkdir -p "$1"
[ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || echo 1 >/proc/sys/net/ipv4/ip_forward
ip address add "$2/32" dev lo
if [ -n "$3" ]; then ip address add "$3/32" dev lo; fi
"""
_DOWN: Final = """
ip address delete "$2/32" dev lo
if [ -n "$3" ]; then ip address delete "$3/32" dev lo; fi
rm -rf "$1"
"""
REACHED: Final = "--reached--"
_TRY: Final = f"""
set -e
unshare --net sleep 60 &
holder=$!
trap 'kill "$holder"' EXIT
export CNI_CONTAINERID=$1 CNI_NETNS=/proc/$holder/ns/net CNI_IFNAME=eth0 CNI_PATH=$3
while [ "$(readlink "$CNI_NETNS")" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
printf %s "$4" | CNI_COMMAND=ADD "$3/$2"
nsenter --net="$CNI_NETNS" busybox ping -c 1 -W 2 "$5" >/dev/null 2>&1 && echo {REACHED}
printf %s "$4" | CNI_COMMAND=DEL "$3/$2"
"""
"""Not by `ip netns`: it makes /run/netns a mount, under which containerd's namespaces are out of reach."""


class PodNetwork:
    """Gives pods a network of the node's range: pods, node and machine reach them as routing allows.

    Args:
        sandbox: The sandbox of the node.
        pod_range: The IPv4 range to give out addresses of, at most a /30. Its first address is the node's.

    Raises:
        ConfigError: ``pod_range`` is not an IPv4 range, or too small.
    """

    def __init__(self, sandbox: Sandbox, pod_range: str = POD_RANGE) -> None:
        """Check the range; nothing is written yet."""
        self._network = pods_of(pod_range)
        self._sandbox = sandbox
        self._undone = True

    @property
    def name(self) -> str:
        """The layer's name."""
        return "pod_network"

    @property
    def overrides(self) -> NodeOverrides:
        """The folders for containerd's CRI plugin."""
        return NodeOverrides(cni_bin_dir=BIN_DIR, cni_conf_dir=f"{FOLDER}/net.d")

    @property
    def gateway(self) -> str:
        """The node's address in the range, by which pods reach it."""
        return str(self._network.network_address + 1)

    def __enter__(self) -> Self:
        """Let the node route, give it its address in the range, and write the configuration list.

        Raises:
            LayerError: The network does not come up in the sandbox; what was made is undone.
        """
        try:
            self._undone = False
            self._run(_UP)
            with staged(self._sandbox.files, FOLDER) as folder:
                _write(folder / "net.d" / "10-pod-network.conflist", self.conflist())
            done = self._plugin("STATUS")
        except (OSError, ValueError, SandboxError) as error:
            self._undo()
            raise LayerError("the pod network did not come up", cause=str(error)) from error
        except BaseException:
            self._undo()
            raise
        if done.returncode != 0:
            self._undo()
            raise LayerError("the pod network did not come up", cause=_said(done))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the node's addresses and the configuration away; does nothing the second time."""
        self._undo()

    def check(self) -> Health:
        """Attach a namespace, reach the node from it, and detach it.

        Returns:
            Healthy if that works; the details have the address, or what the plugin said.
        """
        name = f"check-{uuid.uuid4().hex[:12]}"
        argv = ["sh", "-c", _TRY, "sh", name, PLUGIN, BIN_DIR, json.dumps(self._config()), self.gateway]
        try:
            done = self._sandbox.run(argv, check=False, timeout=30)
        except SandboxError as error:
            return Health(ok=False, details={"plugin": str(error)})
        answer, reached, _ = done.stdout.rpartition(REACHED)
        if done.returncode != 0 or not reached:
            return Health(ok=False, details={"plugin": _said(done) or "the node does not answer"})
        try:
            addresses = [str(ip["address"]) for ip in json.loads(answer)["ips"]]
        except (ValueError, KeyError, TypeError) as error:
            return Health(ok=False, details={"plugin": f"{answer[:200]!r}: {error!r}"})
        return Health(ok=len(addresses) == 1, details={"address": ", ".join(addresses)})

    def conflist(self) -> dict[str, Any]:
        """Return the network's configuration list (CNI specification, section 1)."""
        return {"cniVersion": VERSION, "name": NETWORK, "plugins": [self._of_plugin()]}

    def _of_plugin(self) -> dict[str, Any]:
        ipam = {"subnet": str(self._network), "dataDir": STATE}
        return {"type": PLUGIN, "gateway": self.gateway, "ipam": ipam}

    def _config(self) -> dict[str, Any]:
        """Return the configuration on the plugin's standard input (CNI specification, section 3)."""
        return {"cniVersion": VERSION, "name": NETWORK, **self._of_plugin()}

    def _plugin(self, command: str) -> Completed:
        config = self._config() | ({"cniVersion": "1.1.0"} if command == "STATUS" else {})
        script = f"printf %s {shlex.quote(json.dumps(config))} | exec {BIN_DIR}/{PLUGIN}"
        environment = {"CNI_COMMAND": command, "CNI_PATH": BIN_DIR}
        return self._sandbox.run(["sh", "-c", script], check=False, env=environment)

    def _run(self, script: str, *, check: bool = True) -> None:
        # In gVisor, TCP from a pod does not reach an address that only the outer interface has.
        address = self._sandbox.address if self._sandbox.kind == "gvisor" else ""
        argv = ["sh", "-c", script, "sh", STATE, self.gateway, address]
        self._sandbox.run(argv, check=check)

    def _undo(self) -> None:
        if self._undone:
            return
        self._undone = True
        with contextlib.suppress(SandboxError):
            self._run(_DOWN, check=False)
        with contextlib.suppress(OSError):
            self._sandbox.files.remove(FOLDER)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _said(done: Completed) -> str:
    """Return what the plugin said of a failure: an error is an object on its standard output."""
    return " ".join((done.stdout + done.stderr).split())[-500:]
