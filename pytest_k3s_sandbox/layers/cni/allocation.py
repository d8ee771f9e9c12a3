"""Allocation of addresses to attachments, without I/O.

The plugin starts for every pod, so this module imports only what Python's start imports.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Address, IPv4Network

Key = tuple[str, str]
"""An attachment within its network: the container's id and the interface's name."""


class Exhausted(Exception):
    """No address of the range is free."""


class AlreadyAttached(Exception):
    """The attachment has an address already."""


class Book:
    """The addresses of one network's attachments; immutable by convention.

    Args:
        held: The address of each attachment, as a number.
        last: The last allocated address, as a number; 0 for none.
    """

    __slots__ = ("held", "last")

    def __init__(self, held: Mapping[Key, int] | None = None, last: int = 0) -> None:
        """Keep a copy of the addresses."""
        self.held: dict[Key, int] = dict(held or {})
        self.last = last

    def __eq__(self, other: object) -> bool:
        """Return whether both hold the same addresses."""
        return isinstance(other, Book) and (self.held, self.last) == (other.held, other.last)

    __hash__ = None  # type: ignore[assignment]  # equal books would need equal hashes, and `held` is a dict

    def allocate(self, key: Key, first: int, last: int, reserved: Iterable[int] = ()) -> tuple[Book, int]:
        """Allocate the next free address after the last one.

        As in the host-local plugin, the order delays the reuse of a released address for as long as possible,
        so that clients do not mistake a new pod for the old one.

        Args:
            key: The attachment.
            first: The range's first address.
            last: The range's last address, inclusive.
            reserved: Addresses in the range that are never allocated.

        Returns:
            The new book, and the address.

        Raises:
            AlreadyAttached: ``key`` holds an address.
            Exhausted: No address is free.
        """
        if key in self.held:
            raise AlreadyAttached(key)
        taken = {*self.held.values(), *reserved}
        count = last - first + 1
        start = self.last + 1 if first <= self.last <= last else first
        for step in range(count):
            address = first + (start - first + step) % count
            if address not in taken:
                return Book({**self.held, key: address}, address), address
        raise Exhausted(count)

    def free(self, first: int, last: int, reserved: Iterable[int] = ()) -> int:
        """Count the addresses from ``first`` to ``last`` that are not reserved."""
        taken = {number for number in (*self.held.values(), *reserved) if first <= number <= last}
        return last - first + 1 - len(taken)

    def release(self, key: Key) -> Book:
        """Return a book without ``key``, which may be absent already."""
        return Book({other: number for other, number in self.held.items() if other != key}, self.last)

    def keep(self, valid: Iterable[Key]) -> Book:
        """Return a book with only the ``valid`` attachments."""
        wanted = set(valid)
        return Book({key: number for key, number in self.held.items() if key in wanted}, self.last)


def bounds(network: IPv4Network, gateway: IPv4Address) -> tuple[int, int, set[int]]:
    """Return the first and the last address to allocate, and the reserved ones between them.

    Args:
        network: The range; its first address names it and its last is its broadcast address.
        gateway: An address that is never allocated.

    Returns:
        All as numbers.

    Raises:
        ValueError: The range has no address besides the gateway's.
    """
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    if last <= first:
        raise ValueError(f"network {network} is too small to allocate from")
    return first, last, {int(gateway)}
