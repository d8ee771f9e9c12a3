"""A network namespace of a sandbox's own, and the veth pair that leads to it.

The machine keeps one end; the other end is the sandbox's ``eth0``. Nothing is
routed or translated: only the two ends of the pair see each other.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from pytest_k3s_sandbox.errors import MissingCapability, StartError

POOL = IPv4Network("10.213.0.0/16")
"""Where the pairs' /30 networks are taken from."""


@dataclass(frozen=True)
class Network:
    """The network of one sandbox.

    Attributes:
        netns: The namespace's name in /run/netns.
        veth: The interface on the machine.
        gateway: The machine's address on the pair.
        address: The sandbox's address on the pair.
    """

    netns: str
    veth: str
    gateway: str
    address: str


def _ip(*words: str) -> str:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        raise MissingCapability(
            "cannot create a network namespace",
            cause="there is no `ip` program",
            remedy="run `k3s-sandbox provision`, or install iproute2",
        ) from None
    except subprocess.TimeoutExpired as error:
        raise StartError(f"`ip {' '.join(words)}` failed", cause="it did not end within 30 s") from error
    if done.returncode != 0:
        raise StartError(f"`ip {' '.join(words)}` failed", cause=done.stderr.strip())
    return done.stdout


def free_subnet(used: set[IPv4Network]) -> IPv4Network:
    """Return the first /30 of the pool that overlaps none of the used networks.

    Raises:
        StartError: All are in use.
    """
    for subnet in POOL.subnets(new_prefix=30):
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise StartError(
        f"no free network in {POOL}",
        cause="every /30 of it is in use on this machine",
        remedy="end other sandboxes (`k3s-sandbox down`)",
    )


def used_networks() -> set[IPv4Network]:
    """Return the IPv4 networks of the machine's interfaces."""
    links: list[dict[str, Any]] = json.loads(_ip("-4", "-json", "address", "show"))
    return {
        ipaddress.IPv4Interface(f"{entry['local']}/{entry['prefixlen']}").network
        for link in links
        for entry in link.get("addr_info", [])
    }


def choose(key: str) -> Network:
    """Choose names and addresses; the caller holds the lock that guards the pool.

    Args:
        key: Eight characters that make the names unique.

    Returns:
        A network that does not exist yet.

    Raises:
        StartError: No addresses are free.
        MissingCapability: There is no ``ip`` program.
    """
    gateway, address = (str(host) for host in free_subnet(used_networks()).hosts())
    return named(key, gateway, address)


def named(key: str, gateway: str = "", address: str = "") -> Network:
    """Return the network of a key; without addresses it does for removing it."""
    return Network(netns=f"k3ssb-{key}", veth=f"k3s{key}", gateway=gateway, address=address)


def create(network: Network) -> None:
    """Create the namespace and the pair, the sandbox's end being ``eth0`` with a default route.

    Raises:
        StartError: The kernel refused; nothing is left then.
    """
    gateway, address = network.gateway, network.address
    try:
        _ip("netns", "add", network.netns)
        _ip("link", "add", network.veth, "type", "veth", "peer", "name", "eth0", "netns", network.netns)
        _ip("address", "add", f"{gateway}/30", "dev", network.veth)
        _ip("link", "set", network.veth, "up")
        in_ns = ("-n", network.netns)
        _ip(*in_ns, "address", "add", f"{address}/30", "dev", "eth0")
        _ip(*in_ns, "link", "set", "lo", "up")
        _ip(*in_ns, "link", "set", "eth0", "up")
        _ip(*in_ns, "route", "add", "default", "via", gateway, "dev", "eth0")
    except BaseException:
        remove(network)
        raise


def end_processes(network: Network, seconds: float = 5.0) -> None:
    """Kill what still runs in the namespace, which is a sandbox's alone, and wait for its end.

    Args:
        network: The network; a namespace that is gone is no error.
        seconds: How long to wait at most.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            pids = [int(word) for word in _ip("netns", "pids", network.netns).split()]
        except StartError:
            return
        if not pids or os.getpid() in pids:  # the latter where the kernel's answer cannot be right
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove(network: Network) -> None:
    """Remove the namespace and the pair; those that are gone already are no error."""
    for words in (("link", "delete", network.veth), ("netns", "delete", network.netns)):
        with contextlib.suppress(StartError):
            _ip(*words)
