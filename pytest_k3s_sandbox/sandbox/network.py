"""A network namespace of a sandbox's own, and the veth pair that leads to it.

The machine keeps one end; the other end is the sandbox's ``eth0``. Nothing is
routed or translated: only the two ends of the pair see each other.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.errors import MissingCapability, StartError
from pytest_k3s_sandbox.sandbox.processes import every, in_network_namespace

POOL = IPv4Network("10.213.0.0/16")
"""Where the pairs' /30 networks are taken from."""

NETNS = Path("/run/netns")
"""Where ip(8) keeps the names of network namespaces."""


@dataclass(frozen=True)
class Network:
    """The network of one sandbox.

    Attributes:
        netns: The namespace's name in /run/netns.
        veth: The interface on the machine.
        gateway: The machine's address on the pair.
        address: The sandbox's address on the pair.
        inode: The inode of the namespace, which tells it from another one of that name; 0 before it exists.
        index: The number of the interface on the machine; 0 before it exists.
    """

    netns: str
    veth: str
    gateway: str
    address: str
    inode: int = 0
    index: int = 0


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
    network = named(key, gateway, address)
    if os.path.lexists(NETNS / network.netns) or _index(network.veth):
        raise StartError(f"the network {network.netns}", cause="the machine has one of that name already")
    return network


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


def identified(network: Network) -> Network:
    """Return a network that exists with the numbers that tell it from another one of its names."""
    inode = (NETNS / network.netns).lstat().st_ino
    return replace(network, inode=inode, index=_index(network.veth))


def _index(link: str) -> int:
    """Return the number of an interface; 0 when there is none, or none can be told."""
    try:
        return socket.if_nametoindex(link)  # not from /sys, which may be that of another network namespace
    except OSError:
        return 0


def verified(network: Network) -> os.stat_result | None:
    """Return what stat(2) gives for a network's namespace if that is the sandbox's, else None.

    A namespace whose inode was not recorded, because the start was killed just then, is the
    sandbox's only while there is no process in it: then its removal harms none.
    """
    try:
        found = (NETNS / network.netns).lstat()
        own = Path("/proc/self/ns/net").stat()
    except OSError:
        return None
    if os.path.samestat(found, own) or network.inode not in {0, found.st_ino}:
        return None
    if network.inode == 0 and any(in_network_namespace(pid, found) for pid in every()):
        return None
    return found


def remove(network: Network) -> None:
    """Remove the namespace and the pair if they are the sandbox's; those that are gone are no error."""
    ours = verified(network) is not None
    index = _index(network.veth)
    if index and (network.index == index or (network.index == 0 and ours)):
        with contextlib.suppress(StartError):
            _ip("link", "delete", network.veth)
    if ours:
        with contextlib.suppress(StartError):
            _ip("netns", "delete", network.netns)
