"""A node whose pods have a network by the CNI plugin, which is called as a runtime calls it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from pytest_k3s_sandbox.sandbox.base import BIN_DIR, Process
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from support.waiting import until

PROGRAM = "k3s-sandbox-network"
FORWARD = "/proc/sys/net/ipv4/ip_forward"
PORT = 8000

SERVE = f"""
import socketserver
class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.client_address[0].encode())
class Server(socketserver.TCPServer):
    allow_reuse_address = True
Server(("0.0.0.0", {PORT}), Answer).serve_forever()
"""
"""A server that tells its clients who they are to it."""


class Node:
    """A sandbox with the plugin.

    Args:
        sandbox: The sandbox.
    """

    def __init__(self, sandbox: StartedSandbox) -> None:
        """Keep it."""
        self.sandbox = sandbox

    def sh(self, script: str, *, check: bool = True, **env: str) -> str:
        """Run a script in the node, and return what it says."""
        return self.sandbox.run(["bash", "-c", script], check=check, env=env).stdout

    def serve(self, pod: str = "") -> Process:
        """Start a server in the node or in a pod, which is soon ready."""
        enter = ["ip", "netns", "exec", pod] if pod else []
        server = self.sandbox.spawn([*enter, sys.executable, "-c", SERVE], name="server")
        until(lambda: self.ask("127.0.0.1", pod) == "127.0.0.1")
        return server

    def forward(self, on: bool) -> None:
        """Let the node forward packets, or not."""
        write = f"echo {int(on)} > {FORWARD}"
        if self.sandbox.kind == "host":  # nothing inside may write the kernel's tunables
            namespace = f"--net=/run/netns/{self.sandbox.network.netns}"
            subprocess.run(["nsenter", namespace, "sh", "-c", write], check=True)
        else:
            self.sh(write)

    def ask(self, address: str, pod: str = "") -> str:
        """Connect to a server, from the node or from a pod; return who the server says that is."""
        enter = f"ip netns exec {pod} " if pod else ""
        script = f"{enter}timeout 2 bash -c 'cat < /dev/tcp/{address}/{PORT}'"
        return self.sandbox.run(["bash", "-c", script], check=False).stdout

    def host_ends(self) -> set[str]:
        """Return the interfaces of the node that may be ends of pods' pairs."""
        return set(re.findall(r"^\d+: (veth[0-9a-f]{8})[:@]", self.sh("ip -o link"), re.MULTILINE))


@dataclass
class Net:
    """A network of the plugin, with a subnet of its own."""

    node: Node
    name: str
    subnet: str
    gateway: str
    pods: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, which a test may change."""
        return {
            "cniVersion": "1.1.0",
            "name": self.name,
            "type": PROGRAM,
            "gateway": self.gateway,
            "mtu": 0,
            "ipam": {"type": "host-local", "subnet": self.subnet, "dataDir": "/run/addresses"},
        }

    def pod(self) -> str:
        """Make a network namespace, and return its name."""
        pod = f"{self.name}-{len(self.pods)}"
        self.node.sh(f"ip netns add {pod}")
        self.pods.append(pod)
        return pod

    def call(self, command: str, pod: str = "", text: object = None, **more: object) -> tuple[int, Any]:
        """Call the plugin, which must say nothing on standard error; return its exit code and its answer.

        Args:
            command: The operation.
            pod: The pod, which is the container's id; its namespace may be gone.
            text: The whole configuration, in the place of the network's.
            more: Fields of the configuration that differ; variables, if their names begin with ``CNI_``.
        """
        variables = {name: str(value) for name, value in more.items() if name.startswith("CNI_")}
        fields = {name: more[name] for name in more.keys() - variables.keys()}
        config = json.dumps(self.config | fields) if text is None else str(text)
        env = {"CNI_COMMAND": command, "CNI_PATH": BIN_DIR, "CONFIG": config}
        if pod:
            env |= {"CNI_CONTAINERID": pod, "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0"}
        script = f'printf %s "$CONFIG" | {BIN_DIR}/{PROGRAM}'
        done = self.node.sandbox.run(["bash", "-c", script], check=False, env=env | variables)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def add(self, pod: object = None, **more: object) -> dict[str, Any]:
        """Attach a pod, by default a new one, and return the result."""
        code, result = self.call("ADD", str(pod or self.pod()), **more)
        assert code == 0, result
        assert isinstance(result, dict)
        return result

    def refused(self, command: str, pod: str = "", **more: object) -> tuple[int, str]:
        """Call the plugin, which must fail; return the code and the words of its error."""
        code, error = self.call(command, pod, **more)
        assert code == 1, error
        return error["code"], f"{error['msg']}: {error.get('details', '')}"

    def collect(self, *valid: str) -> tuple[int, Any]:
        """Have the plugin remove what is of none of some pods."""
        attachments = [{"containerID": pod, "ifname": "eth0"} for pod in valid]
        return self.call("GC", text=json.dumps(self.config | {"cni.dev/valid-attachments": attachments}))

    def clear(self) -> None:
        """Remove the pods' namespaces and all ends of pairs."""
        gone = "".join(f"ip netns delete {pod}; " for pod in self.pods)
        ends = "for end in $(ip -o link | grep -o 'veth[0-9a-f]*'); do ip link delete $end; done"
        self.node.sh(gone + ends, check=False)

    def records(self) -> set[str]:
        """Return the files of addresses, and the links to them."""
        found = self.node.sh(f"ls /run/addresses/{self.name}", check=False).split()
        return {name for name in found if name != "lock" and not name.startswith("last_reserved_ip")}

    def address(self, number: int) -> str:
        """Return an address of the subnet."""
        return f"{self.gateway.rpartition('.')[0]}.{number}"
