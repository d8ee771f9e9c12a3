"""Which answers of statx are completed, and with what; one fake tracee, without any tracing."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from pytest_k3s_sandbox.layers.interceptor import procfs
from pytest_k3s_sandbox.layers.interceptor.answers import (
    BASIC_STATS,
    FIRST_UNIQUE_ID,
    MNT_ID,
    MNT_ID_UNIQUE,
    Answers,
    answered,
)
from pytest_k3s_sandbox.layers.interceptor.calls import Call
from pytest_k3s_sandbox.layers.interceptor.memory import Memory
from pytest_k3s_sandbox.layers.interceptor.profiles import Profile
from pytest_k3s_sandbox.layers.interceptor.requests import ARGUMENTS, ORIG_RAX, RAX, RIP, RSP, Registers
from pytest_k3s_sandbox.layers.interceptor.rewriting import Rewriter
from pytest_k3s_sandbox.layers.interceptor.rules import Rules, StatxRule
from pytest_k3s_sandbox.layers.interceptor.stats import Stats
from pytest_k3s_sandbox.layers.interceptor.syscalls import PATH_CALLS, STATX

TID, BUFFER, MOUNT = 7, 0x1000, 42
BEHIND, STACK = 0x5002, 0x7000
UNDER = "/sys/fs/cgroup"
GVISOR_WRITES = 0x98
PROFILE = Profile(Rules(statx=(StatxRule(UNDER),)), None)


@pytest.mark.parametrize(
    ("given", "asked", "mask"),
    [
        (MNT_ID, 0, 0x17FF),
        (MNT_ID, 1, 0x17FF),
        (MNT_ID, 0xFFF, 0x17FF),
        (MNT_ID, MNT_ID_UNIQUE, 0x47FF),
        (MNT_ID, MNT_ID | MNT_ID_UNIQUE, 0x47FF),
        (0, MNT_ID | MNT_ID_UNIQUE, 0x7FF),  # a kernel that knows no id of a mount
    ],
)
def test_the_mask_is_linux(given: int, asked: int, mask: int) -> None:
    assert answered(given, asked) == mask


class FakeRegisters(Registers):
    """Registers of no tracee."""

    def load(self, tid: int) -> None:
        """Leave them as they are."""

    def store(self, tid: int) -> None:
        """Keep them."""


class FakeMemory(Memory):
    """Memory that ends somewhere."""

    def __init__(self, length: int) -> None:
        """Fill it."""
        self.content = bytearray(b"\xee" * length)

    def read(self, _tid: int, address: int, length: int) -> bytes:
        """Return bytes of the buffer."""
        return bytes(self.content[address - BUFFER : address - BUFFER + length])

    def write(self, _tid: int, address: int, data: bytes) -> bool:
        """Change the buffer, if it is long enough."""
        at = address - BUFFER
        if at + len(data) > len(self.content):
            return False
        self.content[at : at + len(data)] = data
        return True


class Tracee:
    """A program that calls statx, on a kernel that fills what it is asked for and says so or not.

    Args:
        says: The stx_mask for a mask: what the kernel says that it filled.
        length: The bytes of the program's buffer.
    """

    def __init__(self, says: Callable[[int], int], length: int = 256) -> None:
        """Start without a call."""
        self.says = says
        self.registers = FakeRegisters()
        self.words = self.registers.words
        self.memory = FakeMemory(length)
        self.stats = Stats()
        self.repeated: list[int] = []
        self.masks: list[int] = []
        self.answers = Answers(
            self.stats,
            self.registers,
            self.memory,
            Rewriter(self.registers, self.memory, lambda tid: tid),
            lambda _tid, call, _profile: self.repeated.append(call.number),
        )

    def enter(self, path: bytes, mask: int) -> Call | None:
        """Begin the call; return it if the tracer waits for its exit."""
        self.words[ORIG_RAX], self.words[RIP], self.words[RSP] = STATX, BEHIND, STACK
        self.words[ARGUMENTS[3]], self.words[ARGUMENTS[4]] = mask, BUFFER
        return self.again(path)

    def again(self, path: bytes) -> Call | None:
        """Begin the call with the registers as they are."""
        call = Call(self._finish, STATX, at_entry=False, of=PATH_CALLS[STATX])
        call.path = path
        return call if self.answers.watch_statx(TID, call, PROFILE) else None

    def leave(self, call: Call, result: int = 0) -> None:
        """Let the kernel answer."""
        asked = self.words[ARGUMENTS[3]]
        self.masks.append(asked)
        if result == 0:
            filled = struct.pack("<I", self.says(asked)).ljust(0x90, b"\1") + struct.pack("<Q", MOUNT)
            self.memory.content[:GVISOR_WRITES] = filled
        self.words[RAX] = result % (1 << 64)
        call.finish(TID, call)

    def _finish(self, _tid: int, call: Call) -> None:
        for index, value in call.restore:
            self.words[index] = value

    def statx(self, path: bytes, mask: int) -> int:
        """Make the whole call, with all that the tracer makes of it; return stx_mask."""
        call = self.enter(path, mask)
        while call is not None:
            self.leave(call)
            if self.words[RIP] == BEHIND:
                break
            assert self.words[RIP] == BEHIND - 2
            assert self.words[RAX] == STATX
            self.words[RIP] = BEHIND
            call = self.again(path)
        return int(struct.unpack_from("<I", self.memory.content)[0])


def gvisor(asked: int) -> int:
    return asked & MNT_ID


PATH = b"/sys/fs/cgroup/memory"


@pytest.mark.parametrize("mask", [0, 1, 0x200, BASIC_STATS, 0xFFF, MNT_ID, 0x2000])
def test_an_incomplete_answer_is_asked_for_again(mask: int) -> None:
    tracee = Tracee(gvisor)
    assert tracee.statx(PATH, mask) == 0x17FF
    assert tracee.masks == [mask, mask | 0x17FF]
    assert tracee.words[ARGUMENTS[3]] == mask
    assert tracee.words[RAX] == 0
    assert tracee.memory.content[0x90:] == struct.pack("<Q", MOUNT).ljust(0x70, b"\0")
    assert tracee.stats.applied == {f"statx {UNDER}": 1}


def test_who_asks_for_all_is_asked_once() -> None:
    tracee = Tracee(gvisor)
    assert tracee.statx(PATH, 0x17FF) == 0x17FF
    assert tracee.masks == [0x17FF]


def test_later_calls_ask_for_all_at_once() -> None:
    tracee = Tracee(gvisor)
    for mask in (1, 2, BASIC_STATS):
        assert tracee.statx(PATH, mask) == 0x17FF
        assert tracee.words[ARGUMENTS[3]] == mask
    assert tracee.masks == [1, 0x17FF, 0x17FF, 0x17FF]


@pytest.mark.parametrize(("mask", "given", "mount"), [(1, 0xFFF, 0), (MNT_ID, 0x1FFF, MOUNT)])
def test_then_another_file_system_still_answers_what_it_is_asked(mask: int, given: int, mount: int) -> None:
    tracee = Tracee(gvisor)
    tracee.statx(PATH, 1)
    tracee.says = lambda asked: 0xFFF | asked & MNT_ID
    assert tracee.statx(b"/sys/fs/cgroup", mask) == given
    assert struct.unpack_from("<Q", tracee.memory.content, 0x90) == (mount,)
    assert tracee.words[ARGUMENTS[3]] == mask


def test_a_unique_id_of_the_mount() -> None:
    tracee = Tracee(gvisor)
    assert tracee.statx(PATH, MNT_ID_UNIQUE) == 0x47FF
    assert struct.unpack_from("<Q", tracee.memory.content, 0x90) == (FIRST_UNIQUE_ID + MOUNT,)


@pytest.mark.parametrize("says", [0x17FF, 0xFFF, 0x173F, 0x1])
def test_an_answer_that_says_what_is_filled_stays(says: int) -> None:
    tracee = Tracee(lambda _asked: says)
    assert tracee.statx(PATH, 1) == says
    assert tracee.masks == [1]
    assert tracee.memory.content[GVISOR_WRITES:] == b"\xee" * (256 - GVISOR_WRITES)
    assert tracee.stats.applied == {}


def test_memory_that_is_too_short_for_the_structure() -> None:
    tracee = Tracee(gvisor, length=0xFF)
    tracee.statx(PATH, 0)
    assert tracee.words[RAX] == (1 << 64) - errno.EFAULT


def test_a_call_that_failed_is_repeated_as_before() -> None:
    tracee = Tracee(gvisor)
    call = tracee.enter(PATH, 1)
    assert call is not None
    tracee.leave(call, -errno.EINTR)
    assert tracee.repeated == [STATX]
    assert tracee.words[ARGUMENTS[3]] == 1


def test_a_handler_between_the_two_calls_has_its_own_mask() -> None:
    tracee = Tracee(gvisor)
    words = tracee.words

    def first_of_two(stack: int, mask: int) -> None:
        words[RIP], words[RSP], words[ARGUMENTS[3]] = BEHIND, stack, mask
        call = tracee.again(PATH)
        assert call is not None
        assert call.restore == ()
        tracee.leave(call)

    def second_of_two(stack: int, mask: int) -> None:
        words[RIP], words[RSP], words[ARGUMENTS[3]] = BEHIND, stack, mask | 0x17FF
        call = tracee.again(PATH)
        assert call is not None
        tracee.leave(call)
        assert words[ARGUMENTS[3]] == mask

    first_of_two(STACK, 1)
    words[RIP], words[RSP], words[ARGUMENTS[3]] = BEHIND, STACK - 0x1000, 2  # of the handler
    call = tracee.again(PATH)
    assert call is not None
    tracee.leave(call)
    assert words[ARGUMENTS[3]] == 2
    second_of_two(STACK, 1)


@pytest.mark.parametrize(
    ("path", "watched"),
    [
        (b"/sys/fs/cgroup", True),
        (b"/sys/fs//cgroup/./cpu/..", True),
        (b"/sys/fs/cgroups", False),
        (b"/sys/fs/cgroup/../bpf", False),
        (b"/", False),
    ],
)
def test_only_below_the_folder(path: bytes, watched: bool) -> None:
    assert (Tracee(gvisor).enter(path, 0) is not None) is watched


@pytest.mark.parametrize(("seen", "watched"), [(PATH, True), (b"/proc", False), (None, False)])
def test_an_empty_path_is_its_descriptors(
    seen: bytes | None, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "descriptor_path", lambda _tid, _descriptor: seen)
    assert (Tracee(gvisor).enter(b"", 0) is not None) is watched
