"""A network namespace of a sandbox's own, and the way from the machine to it.

The machine keeps one end of a veth pair.
It leads to a namespace that decides what passes (:mod:`.gateway`), and from there to the sandbox's ``eth0``.
Where the kernel cannot do that, it leads to the sandbox directly.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability, StartError
from pytest_k3s_sandbox.sandbox import gateway
from pytest_k3s_sandbox.sandbox.processes import every, in_network_namespace
from pytest_k3s_sandbox.support import bounded

POOLS = (IPv4Network("10.213.0.0/16"), IPv4Network("172.31.0.0/16"), IPv4Network("198.18.0.0/16"))
"""Where the /30 networks are taken from: the next one where the machine has a route over all of one.

Two are private (RFC 1918), the last one is for benchmarks (RFC 2544), which no network uses.
"""

POOL_VARIABLE = "K3S_SANDBOX_POOL"
PREFIX = 30
"""The prefix length of a sandbox's network: two addresses, of the machine and of the sandbox."""

"""The variable that names another pool, as 10.99.0.0/16."""

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
        gateway_inode: The inode of the namespace :attr:`between`; 0 before it exists, or without one.
        isolation: How well it is isolated, as :mod:`.gateway` says; empty before it exists.
    """

    netns: str
    veth: str
    gateway: str
    address: str
    inode: int = 0
    index: int = 0
    gateway_inode: int = 0
    isolation: str = ""

    @property
    def between(self) -> str:
        """The name of the namespace between the machine and the sandbox."""
        return f"{self.netns}-gw"


def _ip(*words: str, batch: Sequence[str] = ()) -> str:
    """Run ip(8): one command, or several in one process (``-batch``)."""
    words = (*words, "-batch", "-") if batch else words
    text = "\n".join(batch)
    if shutil.which("ip") is None:
        raise MissingCapability(
            "cannot create a network namespace",
            cause="the program `ip` is not installed",
            remedy="run `k3s-sandbox provision`, or install iproute2",
        )
    argv = [*gateway.guard(), "ip", *words]
    try:
        done = bounded.run(argv, gateway.SECONDS, text=text)
    except subprocess.TimeoutExpired as error:
        raise gateway.too_slow(f"ip {' '.join(words)}") from error
    if done.returncode != 0:
        raise StartError(
            f"`ip {' '.join(words)}` failed",
            cause=gateway.said(done),
            remedy=gateway.REFUSED,
        )
    return done.stdout.decode()


def pools() -> tuple[IPv4Network, ...]:
    """Return where networks are taken from: ``K3S_SANDBOX_POOL`` if it is set, else :data:`POOLS`.

    Raises:
        ConfigError: The variable names no IPv4 network with room for a /30.
    """
    text = os.environ.get(POOL_VARIABLE)
    if not text:
        return POOLS
    try:
        pool = IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"{POOL_VARIABLE}={text}", cause=str(error), remedy="e.g. 10.99.0.0/16") from error
    if pool.prefixlen > PREFIX:
        raise ConfigError(
            f"{POOL_VARIABLE}={text}", cause="it has no room for a /30", remedy="e.g. 10.99.0.0/16"
        )
    return (pool,)


def free_subnet(used: set[IPv4Network]) -> IPv4Network:
    """Return the first /30 of the pools that overlaps none of the used networks.

    Args:
        used: Networks of the machine's interfaces and routes.

    Raises:
        StartError: All are in use.
        ConfigError: See :func:`pools`.
    """
    within = pools()
    for pool in within:
        if any(pool.subnet_of(other) for other in used):
            continue  # quicker than to ask for each of its networks
        for subnet in pool.subnets(new_prefix=PREFIX):
            if not any(subnet.overlaps(other) for other in used):
                return subnet
    covering = sorted(str(other) for other in used if any(pool.subnet_of(other) for pool in within))
    raise StartError(
        f"no free network in {', '.join(map(str, within))}",
        cause=f"the machine has routes over them ({', '.join(covering)}), as a VPN makes them"
        if covering
        else "every /30 of it is in use on this machine",
        remedy=f"name a range that the machine does not use: {POOL_VARIABLE}=10.99.0.0/16"
        if covering
        else "end other sandboxes (`k3s-sandbox ps`)",
    )


def used_networks() -> set[IPv4Network]:
    """Return the IPv4 networks of the machine's interfaces and of its routes but the default one."""
    answers = _answers(_ip("-4", "-json", batch=["address show", "route show table all"]))
    links = [each for each in answers if "addr_info" in each]
    routes = [each for each in answers if "dst" in each]
    addresses = {
        ipaddress.IPv4Interface(f"{entry['local']}/{entry['prefixlen']}").network
        for link in links
        for entry in link.get("addr_info", [])
    }
    return addresses | {found for route in routes if (found := _destination(route)) is not None}


def _answers(text: str) -> list[dict[str, Any]]:
    """Return the objects of several answers of ip(8), each of which is a JSON array or nothing."""
    found: list[dict[str, Any]] = []
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        answer, end = decoder.raw_decode(text)
        found += answer
        text = text[end:].lstrip()
    return found


def _destination(route: dict[str, Any]) -> IPv4Network | None:
    """Return the network of a route; None for a default route, also one in halves, as VPNs set it."""
    try:
        found = IPv4Network(route["dst"])
    except (KeyError, ValueError):  # "default", or another text that is not an address
        return None
    return found if found.prefixlen > 1 else None


def choose(key: str) -> Network:
    """Choose names and addresses; the caller holds the lock that guards the pool.

    Args:
        key: Eight characters that make the names unique.

    Returns:
        A network that does not exist yet.

    Raises:
        StartError: No addresses are free.
        MissingCapability: The program ``ip`` is not installed.
    """
    network = named(key, *(str(host) for host in free_subnet(used_networks()).hosts()))
    if os.path.lexists(NETNS / network.netns) or _index(network.veth):
        raise StartError(
            f"the network {network.netns}",
            cause="the machine has one of that name already",
            remedy=f"start again, which takes another name; if no sandbox uses it (`k3s-sandbox ps`), remove "
            f"it with `ip netns delete {network.netns}` and `ip link delete {network.veth}`",
        )
    return network


def machine_of(address: str) -> str:
    """Return the machine's address for a sandbox: the first of the two of their network.

    Args:
        address: The sandbox's address.
    """
    return str(next(IPv4Network(f"{address}/{PREFIX}", strict=False).hosts()))


def named(key: str, gateway: str = "", address: str = "") -> Network:
    """Return the network of a key; its removal needs no addresses."""
    return Network(netns=f"k3ssb-{key}", veth=f"k3s{key}", gateway=gateway, address=address)


def create(network: Network, opened: Sequence[int] = ()) -> Network:
    """Create the namespaces and the way through them; the sandbox's end is ``eth0`` with a default route.

    Args:
        network: What :func:`choose` gave.
        opened: TCP ports of the machine that the sandbox may reach.

    Returns:
        The same with its isolation and the numbers that identify it.

    Raises:
        StartError: The kernel refused; nothing is left then.
    """
    try:
        return _create_isolated(network, opened)
    except gateway.TooSlow:  # do not start without isolation on a busy machine
        remove(network)
        raise
    except StartError:
        remove(network)  # the kernel lacks a feature, as gVisor's does
    except BaseException:
        remove(network)
        raise
    try:
        return _create_directly(network)
    except BaseException:
        remove(network)
        raise


def _create_isolated(network: Network, opened: Sequence[int]) -> Network:
    _ip(
        batch=[
            f"netns add {network.netns}",
            f"netns add {network.between}",
            f"link add {network.veth} type veth peer name {gateway.MACHINE} netns {network.between}",
            *_machines_end(network),
        ]
    )
    between = NETNS / network.between
    isolation = gateway.make(between, network.gateway, network.address, network.netns, opened)
    made = replace(network, isolation=isolation, gateway_inode=between.lstat().st_ino)
    return identified(made)


def _create_directly(network: Network) -> Network:
    _ip(
        batch=[
            f"netns add {network.netns}",
            f"link add {network.veth} type veth peer name eth0 netns {network.netns}",
            *_machines_end(network),
        ]
    )
    _ip("-n", network.netns, batch=gateway.sandboxes_end(network.gateway, network.address))
    return identified(replace(network, isolation=gateway.OPEN))


def _machines_end(network: Network) -> list[str]:
    return [
        f"address add {network.gateway}/30 dev {network.veth}",
        f"link set {network.veth} up",
    ]


def identified(network: Network) -> Network:
    """Return a network that exists with the numbers that identify it."""
    inode = (NETNS / network.netns).lstat().st_ino
    return replace(network, inode=inode, index=_index(network.veth))


def _index(link: str) -> int:
    """Return the index of an interface; 0 when it does not exist or cannot be read."""
    try:
        return socket.if_nametoindex(link)  # not from /sys, which may be that of another network namespace
    except OSError:
        return 0


def verified(network: Network) -> os.stat_result | None:
    """Return what stat(2) gives for a network's namespace if that is the sandbox's, else None.

    A namespace whose inode was not recorded, because the start was killed just then, is the
    sandbox's only while it has no process; then its removal ends nothing.
    """
    return _verified(network.netns, network.inode)


def _verified(name: str, inode: int) -> os.stat_result | None:
    try:
        found = (NETNS / name).lstat()
        own = Path("/proc/self/ns/net").stat()
    except OSError:
        return None
    if os.path.samestat(found, own) or inode not in {0, found.st_ino}:
        return None
    if inode == 0 and any(in_network_namespace(pid, found) for pid in every()):
        return None
    return found


def remove(network: Network) -> bool:
    """Remove the namespaces and the pair if they are the sandbox's; missing ones are fine.

    Returns:
        False if a namespace could not be identified: the program that sets it up still runs.
    """
    ours = _verified(network.netns, network.inode) is not None
    between = _verified(network.between, network.gateway_inode) is not None
    index = _index(network.veth)
    if index and (network.index == index or (network.index == 0 and (ours or between))):
        with contextlib.suppress(StartError):
            _ip("link", "delete", network.veth)
    for name, is_ours in ((network.netns, ours), (network.between, between)):
        if is_ours:
            with contextlib.suppress(StartError):
                _ip("netns", "delete", name)
    unknown = ((network.netns, network.inode), (network.between, network.gateway_inode))
    return not any(inode == 0 and os.path.lexists(NETNS / name) for name, inode in unknown)
