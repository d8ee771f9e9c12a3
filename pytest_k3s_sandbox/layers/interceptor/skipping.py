"""The test of paths inside Go programs: calls that no rule can concern do not stop.

Most paths of a program are far from all rules. A stop of the tracer for such a call costs more than the call.
So the code of :mod:`.repeating` looks at the path first. It has a list of prefixes for each call that can
stop, made of the rules that are for this call. A call is skipped if its path is absolute, has neither ``//``
nor ``/.``, ends within PATH_MAX, and starts with none of the prefixes. This is the text test of
:meth:`.matching.PathRules.may_concern`. All other calls stop as before.

A pointer may lead to no memory. The code cannot ask for that without a call of the kernel. So it reads, and
the tracer handles the fault: it takes the signal away, and lets the program make the call; see
:meth:`.trapped.TrappedCalls.at_fault`. The kernel then answers EFAULT. Linux resets the handler of a fault's
signal if the program blocks or ignores it (``force_sig_info_to_task`` in kernel/signal.c); the tracer cannot
undo this.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Final

from pytest_k3s_sandbox.layers.interceptor.assembling import Label, Piece, To
from pytest_k3s_sandbox.layers.interceptor.matching import PathRules, outermost
from pytest_k3s_sandbox.layers.interceptor.memory import PATH_MAX
from pytest_k3s_sandbox.layers.interceptor.rules import Rules, trapped_calls
from pytest_k3s_sandbox.layers.interceptor.syscalls import PATH_CALLS, Group, PathCall

NUMBERS: Final = 512
"""The numbers of calls that the code distinguishes; those of x86-64 are smaller."""
TABLE: Final = 2 * NUMBERS
"""The size of the table, which has a word of 16 bits for each number."""
_SECOND: Final = 1 << 15
"""The bit of a word whose call has the path as its second argument. The rest is the list's offset, or 0."""
_END: Final = b"\0"
"""Ends each prefix. An empty prefix ends the list."""
_LOWEST: Final = 0xFFF
"""Programs map no memory below (mmap_min_addr), so the code does not read there."""

CODE: Final[tuple[Piece, ...]] = (
    # r12: the call's number. rdi, rsi: its first arguments. rax, rbx, rcx and r11 are free.
    b"\x49\x81\xfc" + struct.pack("<I", NUMBERS - 1),  # cmp r12, 511
    To(b"\x0f\x87", "call"),  # ja call
    To(b"\x48\x8d\x1d", "table"),  # lea rbx, [table]
    b"\x42\x0f\xb7\x1c\x63",  # movzx ebx, word [rbx + 2 * r12]
    b"\x48\x89\xf9",  # mov rcx, rdi
    b"\x0f\xba\xf3\x0f",  # btr ebx, 15
    b"\x48\x0f\x42\xce",  # cmovc rcx, rsi: the path
    b"\x85\xdb",  # test ebx, ebx
    To(b"\x0f\x84", "call"),  # jz call: it has no list
    To(b"\x48\x8d\x05", "page"),  # lea rax, [page]
    b"\x48\x01\xc3",  # add rbx, rax: the list
    b"\x48\x81\xf9" + struct.pack("<I", _LOWEST),  # cmp rcx, 0xfff
    To(b"\x0f\x86", "call"),  # jbe call
    # Each character with the one before it: al and ah.
    b"\x45\x31\xdb",  # xor r11d, r11d: the character's index
    b"\x8a\x01",  # mov al, [rcx]
    b"\x3c/",  # cmp al, '/'
    To(b"\x0f\x85", "call"),  # jne call: it is relative
    Label("character"),
    b"\x88\xc4",  # mov ah, al
    b"\x41\xff\xc3",  # inc r11d
    b"\x41\x81\xfb" + struct.pack("<I", PATH_MAX),  # cmp r11d, 4096
    To(b"\x0f\x84", "call"),  # je call: it is too long
    b"\x42\x8a\x04\x19",  # mov al, [rcx + r11]
    b"\x84\xc0",  # test al, al
    To(b"\x0f\x84", "prefix"),  # jz prefix
    b"\x66\x3d//",  # cmp ax, '//'
    To(b"\x0f\x84", "call"),  # je call
    b"\x66\x3d./",  # cmp ax, '/.': the low byte comes first
    To(b"\x0f\x84", "call"),  # je call
    To(b"\xe9", "character"),  # jmp character
    Label("prefix"),
    b"\x80\x3b\x00",  # cmp byte [rbx], 0
    To(b"\x0f\x84", "skip"),  # je skip: the list's end
    b"\x45\x31\xdb",  # xor r11d, r11d
    Label("compare"),
    b"\x8a\x03",  # mov al, [rbx]
    b"\x48\xff\xc3",  # inc rbx
    b"\x84\xc0",  # test al, al
    To(b"\x0f\x84", "call"),  # jz call: the path starts with the prefix
    b"\x41\xff\xc3",  # inc r11d
    b"\x42\x3a\x44\x19\xff",  # cmp al, [rcx + r11 - 1]
    To(b"\x0f\x84", "compare"),  # je compare
    Label("rest"),
    b"\x8a\x03",  # mov al, [rbx]
    b"\x48\xff\xc3",  # inc rbx
    b"\x84\xc0",  # test al, al
    To(b"\x0f\x85", "rest"),  # jnz rest
    To(b"\xe9", "prefix"),  # jmp prefix
)
"""The test. It goes on at ``skip`` for a call that no rule can concern, else at ``call``."""


def testable(rules: Rules) -> frozenset[str]:
    """Return the names of the calls whose path tells that no rule concerns them.

    Calls that only retry rules watch are not among them, because the filter passes these from the page.
    """
    stopping = trapped_calls(rules._replace(retries=()))
    return frozenset(
        call.name for call in PATH_CALLS.values() if call.name in stopping and not _for_any(call, rules)
    )


def _for_any(call: PathCall, rules: Rules) -> bool:
    """Return whether a rule applies to a call whatever its path is."""
    if call.group is Group.STATFS:
        return any(rule.under is None for rule in rules.statfs)
    # The result of readlink counts, not its path: see TrappedCalls._answer().
    return call.group is Group.READLINK and any(Group.READLINK in rule.groups for rule in rules.redirects)


def prefixes(rules: Rules, paths: PathRules, repeated: frozenset[int]) -> dict[int, tuple[bytes, ...]]:
    """Return the prefixes of each call that has a test, by the call's number.

    Args:
        rules: The rules of a program.
        paths: The same rules for paths.
        repeated: The numbers of the calls that the program repeats itself.
    """
    found = {}
    names = testable(rules)
    for number, call in PATH_CALLS.items():
        if call.name not in names:
            continue
        wanted = {*paths.roots_of(call)}
        if call.group is Group.STATFS:
            wanted.update(os.fsencode(rule.under) for rule in rules.statfs if rule.under is not None)
        if call.name == "statx":
            wanted.update(os.fsencode(rule.under) for rule in rules.statx)
        if number not in repeated:
            watching = (rule for rule in rules.retries if rule.exits and call.group in rule.groups)
            wanted.update(os.fsencode(rule.under) for rule in watching)
        roots = outermost(wanted)
        if all(root.strip(b"/") and _END not in root for root in roots):
            found[number] = roots
    return found


def table(tests: Mapping[int, tuple[bytes, ...]], at: int, room: int) -> bytes:
    """Return the table and the lists behind it. A call has no test if its list does not fit.

    Args:
        tests: The prefixes of each call, by its number; none of them is empty or contains a NUL.
        at: The table's offset in the page.
        room: The size of table and lists together.
    """
    words, lists = [0] * NUMBERS, b""
    known: dict[tuple[bytes, ...], int] = {}
    for number, roots in sorted(tests.items()):
        if roots not in known:
            text = b"".join(root + _END for root in roots) + _END
            if TABLE + len(lists) + len(text) > room:
                continue
            known[roots] = at + TABLE + len(lists)
            lists += text
        words[number] = known[roots] | (_SECOND if PATH_CALLS[number].path else 0)
    return struct.pack(f"<{NUMBERS}H", *words) + lists
