"""Network namespaces in a sandbox that stand for pods: each has a routed veth, a server and clients."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Process
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from support.waiting import until

VIP = "10.43.7.7"
"""An address of the range of services."""

PYTHON = (sys.executable, "-I", "-S")

SERVER = """
import socket, sys, threading
name = sys.argv[1]
def one(peer, address):
    try:
        peer.sendall(f"{name} {address[0]}\\n".encode())
        while data := peer.recv(65536):
            peer.sendall(data)
    except OSError:
        pass
    peer.close()
def datagrams(udp):
    while True:
        _, address = udp.recvfrom(2000)
        udp.sendto(f"{name} {address[0]}".encode(), address)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 8080))
threading.Thread(target=datagrams, args=(udp,), daemon=True).start()
tcp = socket.create_server(("0.0.0.0", 8080), backlog=128)
print("serving", flush=True)
while True:
    threading.Thread(target=one, args=tcp.accept(), daemon=True).start()
"""
"""Says its name and the client's address, then what it gets."""

CLIENT = """
import json, socket, sys, time
address, port, kind, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
timeout = float(sys.argv[5]) if len(sys.argv) > 5 else 5.0
seen = {}
began = time.monotonic()
for _ in range(count):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as peer:
        peer.settimeout(timeout)
        try:
            peer.connect((address, port))
            if kind == "udp":
                peer.send(b"x")
            answer = peer.recv(100).decode().strip()
        except OSError as error:
            answer = type(error).__name__
    seen[answer] = seen.get(answer, 0) + 1
print(json.dumps(seen))
print((time.monotonic() - began) / count * 1000)
"""
"""Prints how often it got which answer, and the milliseconds of each connection."""

STREAMS = """
import collections, json, os, socket, sys, threading, time
address, port, count, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ended = collections.Counter()
def one():
    try:
        peer = socket.create_connection((address, port), timeout=10)
        peer.recv(100)
        while not os.path.exists(stop):
            peer.sendall(b"y" * 1000)
            got = 0
            while got < 1000:
                data = peer.recv(65536)
                if not data:
                    raise EOFError
                got += len(data)
            time.sleep(0.02)
        ended["ok"] += 1
    except Exception as error:
        ended[repr(error)] += 1
threads = [threading.Thread(target=one) for _ in range(count)]
for thread in threads:
    thread.start()
print("streaming", flush=True)
for thread in threads:
    thread.join()
print(json.dumps(ended), flush=True)
"""
"""Keeps connections busy until a file is there, and prints how each ended."""

_POD = """
ip netns add {name}
ip link add v{name} type veth peer name e{name}
ip link set e{name} netns {name}
ip -n {name} link set e{name} name eth0
ip -n {name} link set lo up
ip -n {name} addr add {address}/32 dev eth0
ip -n {name} link set eth0 up
ip addr add {gateway}/32 dev v{name}
ip link set v{name} up
ip -n {name} route add {gateway} dev eth0 scope link
ip -n {name} route add default via {gateway} dev eth0
ip route add {address}/32 dev v{name}
"""


class Pods:
    """The namespaces.

    Args:
        sandbox: Where.
        gateway: The address of the node that they have as their gateway.
    """

    def __init__(self, sandbox: StartedSandbox, gateway: str) -> None:
        """Keep both."""
        self.sandbox = sandbox
        self._gateway = gateway
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        """Prepare the node: it forwards, and has the addresses of services."""
        forward = "echo 1 >/proc/sys/net/ipv4/ip_forward"
        if self.sandbox.kind == "gvisor":
            self.script(forward)
        else:  # it is read-only inside
            outside = ["ip", "netns", "exec", self.sandbox.network.netns, "sh", "-ec", forward]
            subprocess.run(outside, check=True, timeout=10)
        self.script("mkdir -p /run/netns; ip addr replace 10.43.0.1/16 dev lo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the servers."""
        for process in self._processes:
            process.stop(0)

    def script(self, text: str) -> str:
        """Run a shell's script; return what it prints."""
        return self.sandbox.run(["sh", "-ec", text]).stdout

    def add(self, name: str, address: str) -> None:
        """Make a pod."""
        self.script(_POD.format(name=name, address=address, gateway=self._gateway))

    def argv(self, name: str, program: str, *words: object) -> list[str]:
        """Return the command that runs a Python program in a pod, or on the node itself."""
        inside = [] if name == "node" else ["ip", "netns", "exec", name]
        return [*inside, *PYTHON, "-c", program, *map(str, words)]

    def serve(self, name: str) -> None:
        """Start a server."""
        process = self.sandbox.spawn(self.argv(name, SERVER, name), name=f"server-{name}")
        self._processes.append(process)
        until(lambda: "serving" in process.log.read_text())

    def ask(
        self, name: str, address: str, port: int, kind: str, count: int, *, timeout: float = 5.0
    ) -> dict[str, int]:
        """Connect so often; return how often there was which answer, or which error."""
        argv = self.argv(name, CLIENT, address, port, kind, count, timeout)
        answers: dict[str, int] = json.loads(self.sandbox.run(argv, timeout=60).stdout.splitlines()[0])
        return answers

    def milliseconds(self, name: str, address: str, port: int, count: int = 300) -> float:
        """Return how long each of so many connections took, until the first answer."""
        argv = self.argv(name, CLIENT, address, port, "tcp", count)
        return float(self.sandbox.run(argv, timeout=60).stdout.splitlines()[1])

    @contextlib.contextmanager
    def streams(
        self, name: str, address: str, port: int, count: int
    ) -> Iterator[Callable[[], dict[str, int]]]:
        """Keep connections busy; give what ends them and returns how each has ended."""
        stop = f"{STATE_DIR}/stop-streams"
        process = self.sandbox.spawn(self.argv(name, STREAMS, address, port, count, stop), name="streams")

        def end() -> dict[str, int]:
            self.sandbox.files.write(stop, "")
            assert process.wait(Deadline.after(30)) == 0
            ended: dict[str, int] = json.loads(process.log.read_text().splitlines()[-1])
            return ended

        try:
            until(lambda: "streaming" in process.log.read_text())
            yield end
        finally:
            process.stop(0)
            self.sandbox.files.remove(stop)

    def restore(self, text: str) -> None:
        """Give a text to iptables-restore, which must take it."""
        self.sandbox.files.write(f"{STATE_DIR}/table", text)
        self.script(f"iptables-legacy-restore --noflush <{STATE_DIR}/table")

    def refuses(self, text: str) -> bool:
        """Return whether iptables-restore refuses a text."""
        try:
            self.restore(text)
        except StartError:
            return True
        return False

    def saved(self) -> str:
        """Return the nat table as iptables-save prints it."""
        return self.script("iptables-legacy-save -t nat")
