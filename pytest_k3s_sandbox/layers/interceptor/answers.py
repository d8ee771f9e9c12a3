"""Changes the answers of statfs, statx and readlink, at the exit stops of these calls.

gVisor's FUSE fills only the fields of struct statx that the caller's mask names, the type only with
STATX_MODE, and leaves stx_mask 0 (``statFromFUSEAttr`` in pkg/sentry/fsimpl/fuse/inode.go). Linux answers all
basic fields on kernfs, whatever the mask, and says so in stx_mask (``vfs_getattr_nosec`` in fs/stat.c). So an
answer without a basic field in its mask is gVisor's: the tracee makes the call again with a wider mask, and
then gets the mask that Linux answers. Later calls for the same rule have the wider mask at once. Every other
answer stays as it is.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import messages, procfs, requests
from pytest_k3s_sandbox.layers.interceptor.calls import Call
from pytest_k3s_sandbox.layers.interceptor.matching import below, normal
from pytest_k3s_sandbox.layers.interceptor.memory import PATH_MAX, Memory
from pytest_k3s_sandbox.layers.interceptor.profiles import Profile
from pytest_k3s_sandbox.layers.interceptor.requests import ARGUMENTS, RAX, RIP, RSP, Registers
from pytest_k3s_sandbox.layers.interceptor.rewriting import Rewriter
from pytest_k3s_sandbox.layers.interceptor.rules import StatxRule
from pytest_k3s_sandbox.layers.interceptor.stats import Stats

BASIC_STATS: Final = 0x7FF
"""STATX_BASIC_STATS, the fields of stat(2): linux/stat.h (uapi), as the other numbers of statx here."""
MNT_ID: Final = 0x1000
MNT_ID_UNIQUE: Final = 0x4000
FIRST_UNIQUE_ID: Final = 1 << 31
"""The first of Linux' unique ids of mounts, MNT_UNIQUE_ID_OFFSET in fs/namespace.c."""
_WIDE: Final = BASIC_STATS | MNT_ID
_MASK: Final = ARGUMENTS[3]
"""The register of statx' mask; the buffer's is the next one."""
_BUFFER: Final = ARGUMENTS[4]
_MNT_ID_AT: Final = 0x90
"""Offset of stx_mnt_id; stx_mask comes first."""
_SIZE: Final = 0x100
"""Bytes of struct statx; gVisor writes none behind stx_mnt_id, and Linux writes zeros."""


def answered(given: int, asked: int) -> int:
    """Return the stx_mask of Linux, for an answer whose basic fields are filled.

    Linux fills all basic fields of a kernfs file and the mount's id, whatever the mask; and the unique id in
    place of the id where that is asked for (``vfs_statx_path`` in fs/stat.c, since 6.8).

    Args:
        given: The stx_mask of the kernel.
        asked: The mask of the program.
    """
    if given & MNT_ID == 0:
        return given | BASIC_STATS
    return given & ~MNT_ID | BASIC_STATS | (MNT_ID_UNIQUE if asked & MNT_ID_UNIQUE else MNT_ID)


class Answers:
    """Changes the results of calls, one exit stop at a time."""

    def __init__(
        self,
        stats: Stats,
        registers: Registers,
        memory: Memory,
        rewriter: Rewriter,
        repeat: Callable[[int, Call, Profile], None],
    ) -> None:
        """Prepare; ``repeat`` makes a tracee at an exit stop repeat an interrupted call."""
        self._stats = stats
        self._registers = registers
        self._memory = memory
        self._rewriter = rewriter
        self._repeat = repeat
        self._widened: dict[int, dict[tuple[int, int], int]] = {}
        self._incomplete: set[StatxRule] = set()

    def forget(self, tid: int) -> None:
        """Note that a thread has ended, or executes another program."""
        self._widened.pop(tid, None)

    def statfs(self, tid: int, call: Call, profile: Profile) -> None:
        """Change f_type, the first 8 bytes of struct statfs (uapi asm-generic/statfs.h)."""
        words = self._registers.words
        if words[RAX] != 0:
            self._repeat(tid, call, profile)
            return
        buffer = words[ARGUMENTS[1]]
        original = int.from_bytes(self._memory.read(tid, buffer, 8), "little")
        for rule in profile.rules.statfs:
            if rule.original not in {None, original}:
                continue
            if rule.under is not None:
                if not call.path:
                    call.path = procfs.descriptor_path(tid, words[ARGUMENTS[0]]) or b"/"
                if not below(call.path, rule.under):
                    continue
            if self._memory.write(tid, buffer, rule.replacement.to_bytes(8, "little")):
                self._stats.applied[rule.label] += 1
                call.label = rule.label
            return

    def watch_statx(self, tid: int, call: Call, profile: Profile) -> bool:
        """Look at the answer of a statx call at its exit stop, if a rule is for its place.

        Args:
            tid: The tracee, at the seccomp event.
            call: The call. What finishes it so far puts the program's registers back; that stays first.
            profile: The program's rules.

        Returns:
            Whether a rule is for the place: the call's path, or for an empty path its descriptor.
        """
        words = self._registers.words
        place = normal(call.path) if call.path else procfs.descriptor_path(tid, words[ARGUMENTS[0]])
        rule = next((rule for rule in profile.rules.statx if place and below(place, rule.under)), None)
        if rule is None:
            return False
        # A signal's handler that runs in between makes its own calls, with another stack pointer.
        mask = self._widened.get(tid, {}).pop((words[RIP], words[RSP]), None)
        if mask is None and rule in self._incomplete:
            mask = words[_MASK]
            words[_MASK] |= _WIDE
            self._registers.store(tid)
        if mask is not None:
            call.restore += ((_MASK, mask),)
        first = call.finish

        def finish(tid: int, call: Call) -> Call | None:
            wide = words[_MASK]
            following = first(tid, call)
            if following is None:
                self._statx(tid, call, profile, rule, wide)
            return following

        call.finish = finish
        return True

    def _statx(self, tid: int, call: Call, profile: Profile, rule: StatxRule, wide: int) -> None:
        """Complete an answer; ``wide`` is the mask that the kernel got, the register has the program's."""
        words = self._registers.words
        if words[RAX] != 0:
            self._repeat(tid, call, profile)
            return
        buffer, asked = words[_BUFFER], words[_MASK]
        given = int.from_bytes(self._memory.read(tid, buffer, 4), "little")
        if given & BASIC_STATS:
            if wide & given & ~asked & MNT_ID:  # gVisor gives a complete answer the id only if it is asked to
                self._memory.write(tid, buffer, (given & ~MNT_ID).to_bytes(4, "little"))
                self._memory.write(tid, buffer + _MNT_ID_AT, bytes(8))
            return
        self._incomplete.add(rule)
        if wide & _WIDE != _WIDE:
            self._widened.setdefault(tid, {})[words[RIP], words[RSP]] = asked
            words[_MASK] |= _WIDE
            self._rewriter.run_again(tid, call)
            return
        mask = answered(given, asked)
        number = int.from_bytes(self._memory.read(tid, buffer + _MNT_ID_AT, 8), "little")
        if mask & MNT_ID_UNIQUE:
            # gVisor never gives the id of a mount again (``lastMountID`` in pkg/sentry/vfs/vfs.go).
            number += FIRST_UNIQUE_ID
        rest = number.to_bytes(8, "little").ljust(_SIZE - _MNT_ID_AT, b"\0")
        written = self._memory.write(tid, buffer, mask.to_bytes(4, "little"))
        if written and self._memory.write(tid, buffer + _MNT_ID_AT, rest):
            self._stats.applied[rule.label] += 1
            call.label = rule.label
            if messages.debugging():
                messages.say("debug", f"{tid} statx: {rule.label}, mask {asked:#x}, answered {mask:#x}")
        else:  # the structure is longer than the program's memory
            words[RAX] = (1 << 64) - errno.EFAULT
            self._registers.store(tid)

    def readlink(self, tid: int, call: Call, profile: Profile) -> None:
        """Return the path that the program opened from readlink on a redirected descriptor."""
        words = self._registers.words
        length = requests.signed(words[RAX])
        buffer, size = (words[ARGUMENTS[call.of.path + index]] for index in (1, 2))
        if not 0 < length < PATH_MAX:
            return
        original = profile.paths.original(self._memory.read(tid, buffer, length))
        if original is not None and self._memory.write(tid, buffer, original[: size & 0xFFFF_FFFF]):
            words[RAX] = min(len(original), size & 0xFFFF_FFFF)
            self._registers.store(tid)
            self._stats.applied["readlink"] += 1
