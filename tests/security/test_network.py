"""A sandbox reaches nothing outside, and only the machine reaches it, also where the machine forwards.

The machine here is a network namespace: with ``ip_forward=1``, as Docker sets it, an interface towards
another machine, and services on all its addresses. Nothing is changed in the network of the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.sandbox import gateway, network

pytestmark = [pytest.mark.k3s_requires("root", "gvisor"), pytest.mark.timeout(120)]

HOST, OTHER = "k3ssb-machine", "k3ssb-other"
SERVICE, OPENED, INNER = 7001, 7002, 7003

SERVE = """
import socket, sys, threading, time
for port in map(int, sys.argv[1:]):
    tcp = socket.create_server(("0.0.0.0", port), backlog=64)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", port))
    def answer(udp=udp):
        while True:
            data, peer = udp.recvfrom(100)
            udp.sendto(b"answer", peer)
    def accept(tcp=tcp):
        while True:
            tcp.accept()[0].close()
    threading.Thread(target=answer, daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
    if socket.has_ipv6:
        six = socket.create_server(("::", port), family=socket.AF_INET6, backlog=64)
        threading.Thread(target=accept, args=(six,), daemon=True).start()
print("serving", flush=True)
time.sleep(100)
"""

ASK = """
import json, socket, sys
found = {}
for word in sys.argv[1:]:
    kind, address, port = word.split("|")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.settimeout(0.7)
    try:
        s.connect(socket.getaddrinfo(address, int(port), family, s.type)[0][4])
        if kind == "udp":
            s.send(b"question")
            s.recv(100)
        found[word] = "reached"
    except OSError as error:
        found[word] = str(error)
print(json.dumps(found))
"""

SANDBOX = """
import json, sys, time
from pytest_k3s_sandbox.node.start import start_sandbox
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.toolchain import Toolchain

ask, serve = {ask!r}, {serve!r}
with start_sandbox(NodeSpec({kind!r}, open_ports={opened!r}), Toolchain()) as sandbox, start_sandbox(
    NodeSpec({kind!r}), Toolchain()
) as second:
    for each in (sandbox, second):
        log = each.spawn([sys.executable, "-c", serve, "{inner}"], name="serve").log
        while not log.size():
            time.sleep(0.05)
    net = sandbox.network
    print(json.dumps({{"address": sandbox.address, "second": second.address, "gateway": net.gateway,
                       "veth": net.veth, "isolation": net.isolation}}), flush=True)
    for line in sys.stdin:
        words = json.loads(line)
        print(sandbox.run([sys.executable, "-c", ask, *words], timeout=60).stdout.strip(), flush=True)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def within(name: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{name}"]


def told(name: str, *words: str) -> str:
    return subprocess.run([*within(name), *words], capture_output=True, text=True, check=True).stdout


def link_local(link: str) -> str:
    """Return the IPv6 address that the kernel gave to an interface of the machine."""
    shown = json.loads(told(HOST, "ip", "-6", "-json", "address", "show", "dev", link, "scope", "link"))
    address: str = next(info["local"] for each in shown for info in each.get("addr_info", []))
    return address


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """A machine that forwards, and another one beside it that has a route to every sandbox."""
    for name in (HOST, OTHER):
        ip("netns", "add", name)
    try:
        for name in (HOST, OTHER):  # IPv6 addresses work at once, without the search for duplicates
            file = "/proc/sys/net/ipv6/conf/default/accept_dad"
            subprocess.run([*within(name), "sh", "-c", f"test ! -e {file} || echo 0 > {file}"], check=True)
        ip("-n", HOST, "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", OTHER)
        for name, address in ((HOST, "192.0.2.1/24"), (OTHER, "192.0.2.2/24")):
            ip("-n", name, "address", "add", address, "dev", "lan")
            for link in ("lo", "lan"):
                ip("-n", name, "link", "set", link, "up")
        ip("-n", OTHER, "route", "add", "10.213.0.0/16", "via", "192.0.2.1")
        forward = ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
        subprocess.run([*within(HOST), *forward], check=True)
        yield
    finally:
        for name in (HOST, OTHER):
            ip("netns", "delete", name)


class Played:
    """A sandbox on the forwarding machine, asked from inside and from outside.

    Args:
        process: What started it, on the machine.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Learn its addresses."""
        self._process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        self.seen: dict[str, str] = json.loads(line)

    def inside(self, *words: str) -> dict[str, Any]:
        """Return what a program in the sandbox reaches."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    @staticmethod
    def outside(name: str, *words: str) -> dict[str, Any]:
        """Return what a program of a machine reaches."""
        done = subprocess.run(
            [*within(name), sys.executable, "-c", ASK, *words], check=True, capture_output=True, text=True
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture(scope="module", params=["gvisor", "host"])
def played(
    request: pytest.FixtureRequest, machines: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Played]:
    """Two sandboxes on that machine, of which the first may reach one port."""
    del machines
    home = tmp_path_factory.mktemp("home")
    script = textwrap.dedent(SANDBOX).format(
        ask=ASK, serve=SERVE, kind=request.param, opened=(OPENED,), inner=INNER
    )
    with contextlib.ExitStack() as stack:
        for name in (HOST, OTHER):
            words = [*within(name), sys.executable, "-c", SERVE, str(SERVICE), str(OPENED)]
            service = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE))
            stack.callback(service.kill)
            assert service.stdout is not None
            assert service.stdout.readline()
        process = stack.enter_context(
            subprocess.Popen(
                [*within(HOST), sys.executable, "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "K3S_SANDBOX_HOME": str(home)},
            )
        )  # which closes its input at the end, so that it ends
        yield Played(process)


def test_the_machine_reaches_the_sandbox(played: Played) -> None:
    address = played.seen["address"]
    words = [f"{kind}|{address}|{INNER}" for kind in ("tcp", "udp")]
    assert played.outside(HOST, *words) == dict.fromkeys(words, "reached")
    assert played.seen["isolation"] == gateway.FILTERED


def test_a_sandbox_reaches_the_port_that_was_opened_and_no_other(played: Played) -> None:
    at = played.seen["gateway"]
    opened = f"tcp|{at}|{OPENED}"
    found = played.inside(opened, f"tcp|{at}|{SERVICE}", f"udp|{at}|{SERVICE}", f"udp|{at}|{OPENED}")
    assert found.pop(opened) == "reached"
    assert "reached" not in found.values(), found


def test_a_sandbox_reaches_no_other_address(played: Played) -> None:
    words = [
        f"{kind}|{address}|{port}"
        for kind in ("tcp", "udp")
        for address, port in (
            ("192.0.2.1", SERVICE),  # the machine by another address
            ("192.0.2.1", OPENED),
            ("192.0.2.2", SERVICE),  # another machine
            (played.seen["second"], INNER),  # another sandbox
            ("169.254.213.1", SERVICE),  # what lies between
        )
    ]
    found = played.inside(*words)
    assert "reached" not in found.values(), found


def test_a_sandbox_has_no_neighbour_by_ipv6(played: Played) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("IPv6 is switched off on this machine")
    by_lan = f"tcp|{link_local('lan')}%lan|{SERVICE}"
    assert played.outside(OTHER, by_lan) == {by_lan: "reached"}  # so the service answers by IPv6
    by_veth = f"tcp|{link_local(played.seen['veth'])}%eth0|{SERVICE}"
    time.sleep(2.5)  # an address of the inside is used after the search for duplicates only
    found = played.inside(by_veth, f"tcp|::ffff:{played.seen['gateway']}|{SERVICE}")
    assert "reached" not in found.values(), found


def test_another_machine_reaches_neither_sandbox(played: Played) -> None:
    words = [
        f"{kind}|{played.seen[address]}|{INNER}"
        for kind in ("tcp", "udp")
        for address in ("address", "second")
    ]
    found = played.outside(OTHER, *words)
    assert "reached" not in found.values(), found
    # The way is there: it is the sandbox's own gateway that refuses.
    assert played.outside(OTHER, f"tcp|192.0.2.1|{SERVICE}") == {f"tcp|192.0.2.1|{SERVICE}": "reached"}


def test_nothing_of_the_machines_own_rules_is_changed(played: Played) -> None:
    del played
    rules = subprocess.run(
        [*within(HOST), "iptables-save"], capture_output=True, text=True, check=True
    ).stdout
    assert [line for line in rules.splitlines() if line.startswith("-A")] == []
    files = [
        f"/proc/sys/net/ipv4/{name}" for name in ("ip_forward", "conf/all/proxy_arp", "conf/lan/proxy_arp")
    ]
    read = subprocess.run([*within(HOST), "cat", *files], capture_output=True, text=True, check=True).stdout
    assert read.split() == ["1", "0", "0"]


def test_without_a_packet_filter_routes_still_isolate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway, "RESTORES", ("no-such-program",))
    assert "no-such-program" in str(gateway.load(gateway.rules("192.0.2.1", "192.0.2.2", ())))
    chosen = network.choose("0badcafe")
    made = network.create(chosen)
    try:
        assert made.isolation == gateway.ROUTED
        routes = subprocess.run(
            ["ip", "-n", made.between, "-4", "route", "show"], capture_output=True, text=True, check=True
        ).stdout
        found = sorted(line.split()[0] for line in routes.splitlines())
        assert found == sorted([made.gateway, made.address])
    finally:
        network.remove(made)
    assert not (network.NETNS / made.between).exists()
