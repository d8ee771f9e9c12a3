"""What a nat table does to the first packet of a connection, from the table's text (iptables(8))."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import NamedTuple


class Packet(NamedTuple):
    """The first packet of a connection."""

    src: str
    sport: int
    dst: str
    dport: int
    proto: str = "tcp"


@dataclass
class Nat:
    """A nat table, as iptables-restore with ``--noflush`` changes it.

    Attributes:
        chains: The rules of each chain.
        chance: What the match ``statistic`` throws; from 0 to 1.
    """

    chains: dict[str, list[list[str]]] = field(
        default_factory=lambda: {name: [] for name in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}
    )

    chance: Callable[[], float] = random.random

    def restore(self, text: str) -> None:
        """Apply the input of iptables-restore; raise for what it would refuse."""
        first, *lines, last = text.splitlines()
        assert (first, last) == ("*nat", "COMMIT")
        for line in lines:
            words = shlex.split(line)
            if line.startswith(":"):
                self.chains[words[0][1:]] = []
                continue
            verb, chain, *rest = words
            if verb == "-A":
                self.chains[chain].append(rest)
            elif verb == "-I":
                self.chains[chain].insert(int(rest[0]) - 1, rest[1:])
            elif verb == "-D":
                self.chains[chain].remove(rest)
            else:
                assert verb == "-X"
                assert not self.chains.pop(chain)
                assert not any(rule[-1] == chain for rules in self.chains.values() for rule in rules)
        for rules in self.chains.values():
            for rule in rules:
                named = rule[rule.index("-j") + 1]
                assert named in self.chains or named in {"DNAT", "SNAT", "RETURN"}, rule

    def save(self) -> str:
        """Return what iptables-save prints."""
        lines = ["# Generated", "*nat", *(f":{chain} - [0:0]" for chain in self.chains)]
        lines += [f"-A {chain} {' '.join(rule)}" for chain, rules in self.chains.items() for rule in rules]
        return "\n".join([*lines, "COMMIT", ""])

    def led_to(self, packet: Packet, hook: str = "PREROUTING") -> str | None:
        """Return the address and port that a connection is led to, or None if it stays as it is."""
        return self._through(hook, packet)

    def seen_as(self, packet: Packet) -> str | None:
        """Return the source that a connection's endpoint sees instead of its own, or None."""
        return self._through("POSTROUTING", packet)

    def borders(self, first: int, last: int) -> list[int]:
        """Return the source ports of a range at which another rule may begin to match, and its end."""
        found = {first, last + 1}
        for rule in (rule for rules in self.chains.values() for rule in rules if "--sports" in rule):
            for each in rule[rule.index("--sports") + 1].split(","):
                begin, _, end = each.partition(":")
                found |= {int(begin), int(end) + 1}
        return sorted(port for port in found if first <= port <= last + 1)

    def _through(self, chain: str, packet: Packet) -> str | None:
        for rule in self.chains[chain]:
            if not _matches(rule, packet, self.chance):
                continue
            at = rule.index("-j")
            if rule[at + 1] == "RETURN":
                return None
            if rule[at + 1] in {"DNAT", "SNAT"}:
                return rule[at + 3]
            found = self._through(rule[at + 1], packet)
            if found is not None:
                return found
        return None


def _matches(rule: list[str], packet: Packet, chance: Callable[[], float]) -> bool:
    words = rule[: rule.index("-j")]
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option in {"-s", "-d"} and not _within(packet.src if option == "-s" else packet.dst, value):
            return False
        if option == "-p" and value != packet.proto:
            return False
        if option == "--dport" and int(value) != packet.dport:
            return False
        if option == "--sports":
            ranges = [tuple(map(int, each.split(":"))) for each in value.split(",")]
            assert len(ranges) * 2 <= 15  # XT_MULTI_PORTS
            if not any(first <= packet.sport <= last for first, last in ranges):
                return False
        if option == "--probability" and chance() >= float(value):
            return False
        assert option in {"-s", "-d", "-p", "-m", "--dport", "--sports", "--mode", "--probability"}, option
    return True


def _within(address: str, network: str) -> bool:
    base, _, mask = network.partition("/")
    bits = int(IPv4Address(mask)) if "." in mask else (0xFFFFFFFF << (32 - int(mask))) & 0xFFFFFFFF
    return int(IPv4Address(address)) & bits == int(IPv4Address(base))
