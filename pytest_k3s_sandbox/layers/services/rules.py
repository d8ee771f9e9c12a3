"""Rules of the nat table from Services and slices: pure functions, whose text iptables-restore reads.

Only iptables' parts that gVisor has are used: the matches ``tcp``, ``udp`` and ``multiport``, the targets
``DNAT``, ``SNAT`` and jumps. Where the kernel has the match ``statistic``, it is used, too.
gVisor takes a table of at most 32 KiB (``maxOptLen`` in its ``pkg/sentry/syscalls/linux/sys_socket.go``), so
that every rule's size is counted.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from pytest_k3s_sandbox.layers.services.entries import MOST_ENDPOINTS, Entry, Facts, entries_of
from pytest_k3s_sandbox.layers.services.objects import Service, Slice

PREFIX: Final = "K3SSB-"
"""What the names of our chains begin with."""

SERVICES: Final = f"{PREFIX}SERVICES"
NODES: Final = f"{PREFIX}NODES"
HAIRPIN: Final = f"{PREFIX}HAIRPIN"
JUMPS: Final = (("PREROUTING", SERVICES), ("OUTPUT", SERVICES), ("POSTROUTING", HAIRPIN))
"""The built-in chains that lead to ours."""

REFUSING: Final = 1
"""A port of the gateway at which nothing listens (tcpmux)."""

SLOTS: Final = 16
"""The parts of the clients' addresses for session affinity; a power of two."""

GVISOR_BYTES: Final = 32 * 1024
"""The largest table that gVisor takes."""

# Ports that clients get: Linux 32768-60999 (ip_local_port_range), gVisor 16000-65535
# (ports.FirstEphemeral in pkg/tcpip/ports). Each part is shared evenly by itself, in so many bands for each
# endpoint; a multiport match has room for seven ranges (XT_MULTI_PORTS).
_REGIONS: Final = ((1024, 15999, 1), (16000, 32767, 1), (32768, 60999, 4), (61000, 65535, 1))

# Bytes in the table (linux/netfilter_ipv4/ip_tables.h, linux/netfilter/x_tables.h), x86-64.
_EMPTY: Final = 96 + 4 * 152 + 176  # ipt_replace, the built-in chains' policies, the final entry
_CHAIN: Final = 176 + 152  # the entry with its name, the one that returns
_ENTRY: Final = 112
_TARGETS: Final = {"DNAT": 80, "SNAT": 56, "": 40}
_PORT_MATCH: Final = 48
_MULTIPORT: Final = 80
_RESERVED: Final = 2048  # for the rules of others

# What is given up when the rules do not fit: the endpoints of a port, then services.
_LIMITS: Final = (MOST_ENDPOINTS, 8, 4, 2, 1)


class Table(NamedTuple):
    """The content of our chains.

    Attributes:
        chains: Their names.
        lines: Their rules, as iptables-restore reads them.
        size: The bytes that a table with them and no others has.
        ports: The ports of services that have rules.
        limit: The endpoints of a port that connections are shared among, at most.
        left_out: The ports for which there was no room.
    """

    chains: tuple[str, ...]
    lines: tuple[str, ...]
    size: int
    ports: int
    limit: int
    left_out: tuple[str, ...]


class Present(NamedTuple):
    """What a table has of ours already.

    Attributes:
        chains: The names of our chains.
        jumps: The jumps to them.
    """

    chains: frozenset[str] = frozenset()
    jumps: frozenset[tuple[str, str]] = frozenset()


class _Match(NamedTuple):
    """What a rule depends on besides the destination; each part may be empty."""

    source: str = ""
    sports: str = ""
    probability: str = ""


def table(services: Iterable[Service], slices: Iterable[Slice], facts: Facts) -> Table:
    """Return the rules for all services; the same for the same objects in any order.

    Args:
        services: The services.
        slices: The slices of their endpoints; those of other services are ignored.
        facts: The node.
    """
    # Those without endpoints come last: a cluster address refuses by itself where no rule has room.
    entries = sorted(entries_of(services, slices, facts), key=lambda entry: not entry.backends)
    capacity = None if facts.capacity is None else facts.capacity - _RESERVED
    for limit in _LIMITS:
        builder = _Builder(facts, limit, capacity)
        left_out = [entry.name for entry in entries if not builder.add(entry) and entry.backends]
        if not left_out:
            break
    chains, lines = builder.content()
    ports = len({entry.name for entry in entries} - set(left_out))
    return Table(chains, lines, builder.size, ports, limit, tuple(sorted(set(left_out))))


def restore_text(wanted: Table, present: Present) -> str:
    """Return the input of ``iptables-restore --noflush`` that makes our chains those of a table.

    Args:
        wanted: The table.
        present: What there is already.
    """
    names = {chain for _, chain in JUMPS} | set(wanted.chains)
    stale = sorted(present.chains - names)
    return "\n".join(
        [
            "*nat",
            *(f":{chain} - [0:0]" for chain in [*sorted(names), *stale]),
            *(f"-I {hook} 1 -j {chain}" for hook, chain in JUMPS if (hook, chain) not in present.jumps),
            *wanted.lines,
            *(f"-X {chain}" for chain in stale),
            "COMMIT\n",
        ]
    )


def probe_text() -> str:
    """Return an input of iptables-restore that is refused where there is no match ``statistic``."""
    chain = f"{PREFIX}PROBE"
    rule = f"-A {chain} -m statistic --mode random --probability 0.5 -j RETURN"
    return f"*nat\n:{chain} - [0:0]\n{rule}\nCOMMIT\n"


def removal_text(present: Present) -> str:
    """Return the input of ``iptables-restore --noflush`` that removes our chains.

    Args:
        present: What there is.
    """
    return "\n".join(
        [
            "*nat",
            *(f":{chain} - [0:0]" for chain in sorted(present.chains)),
            *(f"-D {hook} -j {chain}" for hook, chain in sorted(present.jumps)),
            *(f"-X {chain}" for chain in sorted(present.chains)),
            "COMMIT\n",
        ]
    )


def written(wanted: Table) -> Present:
    """Return what there is after :func:`restore_text`."""
    return Present(frozenset({chain for _, chain in JUMPS} | set(wanted.chains)), frozenset(JUMPS))


def present_in(saved: str) -> Present:
    """Return what there is of ours.

    Args:
        saved: The output of ``iptables-save -t nat``.
    """
    chains = set()
    jumps = set()
    for line in saved.splitlines():
        words = line.split()
        if line.startswith(f":{PREFIX}"):
            chains.add(words[0][1:])
        elif words[:1] == ["-A"] and tuple(words[1::2]) == (words[1], words[-1]) and words[2:3] == ["-j"]:
            jumps.add((words[1], words[-1]))
    return Present(frozenset(chains), frozenset(jumps) & frozenset(JUMPS))


class _Builder:
    """Collects rules while they fit."""

    def __init__(self, facts: Facts, limit: int, capacity: int | None) -> None:
        self._facts = facts
        self._limit = limit
        self._capacity = capacity
        self._rules: dict[str, list[str]] = {SERVICES: [], HAIRPIN: []}
        self._hairpins: set[tuple[str, str]] = set()
        self._size = _EMPTY + 2 * _CHAIN + len(JUMPS) * (_ENTRY + _TARGETS[""])
        self._size += len(self._moved()) * (_ENTRY + _TARGETS["DNAT"])

    def add(self, entry: Entry) -> bool:
        """Add an entry's rules; return whether there was room for all of them."""
        rules, size = self._of(entry)
        pods = {backend.rpartition(":")[0] for backend in entry.backends[: self._limit]}
        hairpins = self._hairpins | {(pod, entry.protocol) for pod in pods - {self._facts.gateway}}
        if any(not address for address, _ in entry.at) and NODES not in self._rules:
            size += _CHAIN + 2 * (_ENTRY + _TARGETS[""])
            rules = [(NODES, ""), *rules]
        size += self._size
        if self._capacity is not None and size + _hairpins(hairpins, self._facts)[1] > self._capacity:
            return False
        self._size = size
        self._hairpins = hairpins
        for chain, rule in rules:
            self._rules.setdefault(chain, []).extend([rule] if rule else [])
        return True

    @property
    def size(self) -> int:
        """The bytes of the table so far."""
        return self._size + _hairpins(self._hairpins, self._facts)[1]

    def content(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the chains and the lines."""
        self._rules[HAIRPIN] = _hairpins(self._hairpins, self._facts)[0]
        if NODES in self._rules:  # last, so that an address of a load balancer comes before it
            nodes = dict.fromkeys((self._facts.address, self._facts.gateway))
            self._rules[SERVICES] += [f"-d {node}/32 -j {NODES}" for node in nodes]
        self._rules[SERVICES] += self._moved()
        lines = [f"-A {chain} {rule}" for chain, rules in sorted(self._rules.items()) for rule in rules]
        return tuple(sorted(self._rules)), tuple(lines)

    def _moved(self) -> list[str]:
        """Return the rules that lead pods from the node's address to the gateway."""
        if not self._facts.pod_range or self._facts.address == self._facts.gateway:
            return []
        where = f"-s {self._facts.pod_range} -d {self._facts.address}/32"
        return [
            f"{where} -p {each} -j DNAT --to-destination {self._facts.gateway}" for each in ("tcp", "udp")
        ]

    def _of(self, entry: Entry) -> tuple[list[tuple[str, str]], int]:
        """Return an entry's rules with their chains, and the size; in a chain of its own if smaller."""
        backends = entry.backends[: self._limit]
        if not backends:
            chosen = [(_Match(), f"{self._facts.gateway}:{REFUSING}")]
        elif entry.affinity and len(backends) > 1:
            chosen = list(_by_address(backends))
        else:
            chosen = list(_by_chance(backends) if self._facts.random else _by_port(backends))
        protocol = entry.protocol
        inline = [
            (NODES if not address else SERVICES, *_rule(protocol, address, port, match, backend))
            for address, port in entry.at
            for match, backend in chosen
        ]
        name = PREFIX + _digest(f"{entry.name} {entry.at[0]}").hex().upper()
        shared = [
            *(
                (NODES if not address else SERVICES, *_rule(protocol, address, port, _Match(), jump=name))
                for address, port in entry.at
            ),
            *((name, *_rule(protocol, "", 0, match, backend)) for match, backend in chosen),
        ]
        costs = sum(size for *_, size in inline), _CHAIN + sum(size for *_, size in shared)
        rules = inline if costs[0] <= costs[1] else shared
        return [(chain, text) for chain, text, _ in rules], min(costs)


def _hairpins(wanted: AbstractSet[tuple[str, str]], facts: Facts) -> tuple[list[str], int]:
    """Return the rules for pods that reach themselves, which see the gateway then, and their size.

    Args:
        wanted: The pods' addresses, each with a protocol.
        facts: The node.
    """
    source = f"-j SNAT --to-source {facts.gateway}"
    target = _ENTRY + _TARGETS["SNAT"]
    single = [f"-s {pod}/32 -d {pod}/32 -p {protocol} {source}" for pod, protocol in sorted(wanted)]
    if not facts.pod_range:
        return single, len(single) * target
    # For many pods it is smaller to return where a bit of the two addresses differs.
    base, _, length = facts.pod_range.partition("/")
    bits = [_dotted(1 << bit) for bit in range(32 - int(length))]
    among = [f"-s {facts.gateway}/32 -j RETURN"]
    for bit in bits:
        zero, one = f"0.0.0.0/{bit}", f"{bit}/{bit}"
        among += [f"-s {zero} -d {one} -j RETURN", f"-s {one} -d {zero} -j RETURN"]
    protocols = sorted({protocol for _, protocol in wanted})
    size = len(among) * (_ENTRY + _TARGETS[""]) + len(protocols) * target
    mask = (1 << 32) - (1 << len(bits))
    inside = all((_number(pod) ^ _number(base)) & mask == 0 for pod, _ in wanted)
    if not inside or len(single) * target <= size:
        return single, len(single) * target
    both = f"-s {facts.pod_range} -d {facts.pod_range}"
    return [*among, *(f"{both} -p {protocol} {source}" for protocol in protocols)], size


def _number(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def _dotted(number: int) -> str:
    return socket.inet_ntoa(number.to_bytes(4, "big"))


def _rule(
    protocol: str, address: str, port: int, match: _Match, backend: str = "", *, jump: str = ""
) -> tuple[str, int]:
    """Return a rule without its chain, and its size in the table."""
    words = [f"-s {match.source}"] if match.source else []
    words += [f"-d {address}/32"] if address else []
    words.append(f"-p {protocol}")
    size = _ENTRY
    if port:
        words.append(f"-m {protocol} --dport {port}")
        size += _PORT_MATCH
    if match.sports:
        words.append(f"-m multiport --sports {match.sports}")
        size += _MULTIPORT
    if match.probability:
        words.append(f"-m statistic --mode random --probability {match.probability}")
    words.append(f"-j {jump}" if jump else f"-j DNAT --to-destination {backend}")
    return " ".join(words), size + _TARGETS["" if jump else "DNAT"]


def _by_port(backends: Sequence[str]) -> Iterator[tuple[_Match, str]]:
    """Share connections by the client's port, of which each backend has bands; the last one has the rest."""
    count = len(backends)
    for number, backend in enumerate(backends[:-1]):
        bands = []
        for first, last, each in _REGIONS:
            width, pieces = last - first + 1, each * count
            cuts = [first + width * piece // pieces for piece in range(pieces + 1)]
            bands += [f"{cuts[at]}:{cuts[at + 1] - 1}" for at in range(number, pieces, count)]
        yield _Match(sports=",".join(bands)), backend
    yield _Match(), backends[-1]


def _by_chance(backends: Sequence[str]) -> Iterator[tuple[_Match, str]]:
    """Share connections by chance, as kube-proxy does (its ``pkg/proxy/iptables/proxier.go``)."""
    for number, backend in enumerate(backends[:-1]):
        yield _Match(probability=f"{1 / (len(backends) - number):.10f}"), backend
    yield _Match(), backends[-1]


def _by_address(backends: Sequence[str]) -> Iterator[tuple[_Match, str]]:
    """Share clients by the last bits of their address: each slot is its highest bidder's (rendezvous)."""
    slots = [max(backends, key=lambda backend: _digest(f"{backend} {slot}")) for slot in range(SLOTS)]
    covers = list(_covers(slots, 0, 0))
    rest = max(backends, key=lambda backend: (sum(each == backend for _, each in covers), backend))
    yield from ((_Match(source), backend) for source, backend in covers if backend != rest)
    yield _Match(), rest


def _covers(slots: Sequence[str], bits: int, value: int) -> Iterator[tuple[str, str]]:
    """Yield sources that cover the slots with these last bits, each with its backend."""
    among = {slots[slot] for slot in range(value, SLOTS, 1 << bits)}
    if len(among) == 1:
        yield f"0.0.0.{value}/0.0.0.{(1 << bits) - 1}", among.pop()
        return
    yield from _covers(slots, bits + 1, value)
    yield from _covers(slots, bits + 1, value | 1 << bits)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
