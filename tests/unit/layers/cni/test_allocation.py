"""The record of addresses, against a model that is nothing but a dict."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pytest_k3s_sandbox.layers.cni.allocation import (
    AlreadyAttached,
    Book,
    Exhausted,
    Key,
    bounds,
)

FIRST, LAST, GATEWAY = 1, 6, 3
keys = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["eth0", "eth1"]))


class Attachments(RuleBasedStateMachine):
    """Any order of operations keeps the book and the model alike."""

    def __init__(self) -> None:
        """Begin with nothing held."""
        super().__init__()
        self.book = Book()
        self.model: dict[Key, int] = {}

    @rule(key=keys)
    def allocate(self, key: Key) -> None:
        """ADD."""
        if key in self.model:
            with pytest.raises(AlreadyAttached):
                self.book.allocate(key, FIRST, LAST, [GATEWAY])
        elif len(self.model) == LAST - FIRST:
            with pytest.raises(Exhausted):
                self.book.allocate(key, FIRST, LAST, [GATEWAY])
        else:
            self.book, address = self.book.allocate(key, FIRST, LAST, [GATEWAY])
            assert address not in self.model.values()
            self.model[key] = address

    @rule(key=keys)
    def release(self, key: Key) -> None:
        """DEL."""
        self.book = self.book.release(key)
        self.model.pop(key, None)

    @rule(valid=st.sets(keys, max_size=3))
    def keep(self, valid: set[Key]) -> None:
        """GC."""
        self.book = self.book.keep(valid)
        self.model = {key: address for key, address in self.model.items() if key in valid}

    @invariant()
    def alike(self) -> None:
        """Hold what the model holds, within the range, without the gateway's address."""
        assert self.book.held == self.model
        assert all(FIRST <= address <= LAST and address != GATEWAY for address in self.model.values())
        assert self.book.free(FIRST, LAST, [GATEWAY]) == LAST - FIRST - len(self.model)


TestAttachments = Attachments.TestCase


def test_a_released_address_is_given_out_last() -> None:
    book, first = Book().allocate(("a", "eth0"), FIRST, LAST)
    book = book.release(("a", "eth0"))
    for name in "bcdef":
        book, address = book.allocate((name, "eth0"), FIRST, LAST)
        assert address != first
    assert book.allocate(("g", "eth0"), FIRST, LAST)[1] == first


def test_a_range_that_changed_is_started_anew() -> None:
    book = Book({("a", "eth0"): 100}, last=100)
    assert book.allocate(("b", "eth0"), FIRST, LAST)[1] == FIRST


def test_bounds_leave_out_the_networks_own_addresses() -> None:
    first, last, reserved = bounds(IPv4Network("10.42.0.0/24"), IPv4Address("10.42.0.1"))
    assert [str(IPv4Address(number)) for number in (first, last)] == ["10.42.0.1", "10.42.0.254"]
    assert reserved == {int(IPv4Address("10.42.0.1"))}


@pytest.mark.parametrize("size", [31, 32])
def test_a_range_without_room_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="too small"):
        bounds(IPv4Network(f"10.42.0.0/{size}"), IPv4Address("10.42.0.0"))
