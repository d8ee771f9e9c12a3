"""The tracer: one loop that carries out rules on the calls of every tracee.

How a path argument is replaced, and why that is safe. The new string may go neither
over the program's own one (it may be read-only, shared or in use by another
thread) nor below its stack pointer (a goroutine's stack ends there). So the tracee is made
to map memory of its own: at the stop the call is turned into ``mmap``, the result
is taken at the exit stop, and the original call is run again with its original registers
(``rip`` back by the length of ``syscall``). The mapping is kept for the process, in
slots, so that no two threads in a call share one. The argument's register gets
its old value back at the exit stop, so the program cannot tell.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from typing import TYPE_CHECKING, Final

from pytest_k3s_sandbox.layers.interceptor import procfs, requests
from pytest_k3s_sandbox.layers.interceptor.calls import Call, Space
from pytest_k3s_sandbox.layers.interceptor.forward import FORWARDED
from pytest_k3s_sandbox.layers.interceptor.memory import PATH_MAX, Memory
from pytest_k3s_sandbox.layers.interceptor.requests import ARGUMENTS, ORIG_RAX, RAX, RIP, PtraceError
from pytest_k3s_sandbox.layers.interceptor.rules import PathRules, below, normal
from pytest_k3s_sandbox.layers.interceptor.syscalls import (
    AT_FDCWD,
    FSTATFS,
    MMAP,
    OPENAT2,
    PATH_CALLS,
    STATFS_CALLS,
    Group,
    PathCall,
)
from pytest_k3s_sandbox.layers.interceptor.tables import MountTables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_k3s_sandbox.layers.interceptor.rules import Decision, MaskRule, Rules
    from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch
    from pytest_k3s_sandbox.layers.interceptor.stats import Stats

log = logging.getLogger("k3s_sandbox.interceptor")

_GETPID: Final = 39
_MMAP_ARGUMENTS: Final = (0, 16 * 2 * PATH_MAX, 0x3, 0x22, (1 << 64) - 1, 0)
"""addr, length, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, fd, offset: mmap(2)."""
_SLOT: Final = 2 * PATH_MAX
_OPEN_HOW: Final = 24
"""Bytes of struct open_how (flags, mode, resolve: 8 each), linux/openat2.h."""
_RESOLVE_AT: Final = 16
_STOPPED: Final = 0x7F
"""The low byte of a wait status that tells of a stop (WIFSTOPPED of waitpid(2))."""
_LAST_ERRNO: Final = 4095
_TRIES: Final = 3
_GROUP_STOPS: Final = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})


class Tracer:
    """Carries out a rule set on a program and all that descends from it."""

    def __init__(self, rules: Rules, stats: Stats, scratch: Scratch, *, entry_first: bool) -> None:
        """Prepare; ``rules`` must have its tree filled in."""
        self._rules = rules
        self._stats = stats
        self._entry_first = entry_first
        self._paths = PathRules(rules)
        self._registers = requests.Registers()
        self._memory = Memory()
        self._pending: dict[int, Call] = {}
        self._masked: dict[int, tuple[int, int]] = {}
        self._foreign: set[int] = set()
        self._tgids: dict[int, int] = {}
        self._spaces: dict[int, Space] = {}
        self._magics = {rule.original for rule in rules.statfs}
        self._tables = MountTables(rules.mounts, scratch)
        self._root = procfs.root_identity()
        self.on_signal: Callable[[int], None] = lambda _signum: None

    def run(self, root: int, *, until_root_ends: bool = False) -> int:
        """Trace until no tracee is left, or until ``root`` has ended.

        Returns:
            The wait status of ``root``, as of waitpid(2).
        """
        result = 0
        self._tgids[root] = root
        while True:
            try:
                tid, status = os.waitpid(-1, requests.WALL)
            except ChildProcessError:
                return result
            if status & 0xFF == _STOPPED:
                try:
                    self._stopped(tid, status >> 8, root)
                except PtraceError as error:
                    # ESRCH: killed meanwhile, which the next wait reports.
                    if error.errno != errno.ESRCH:
                        log.warning("tracee %d: %s", tid, error)
                continue
            self._forget(tid)
            if tid == root:
                result = status
                if until_root_ends:
                    return result

    def _forget(self, tid: int) -> None:
        call = self._pending.pop(tid, None)
        if call is not None and call.slot is not None:
            call.slot[0].free.append(call.slot[1])
        self._masked.pop(tid, None)
        self._foreign.discard(tid)
        self._tgids.pop(tid, None)
        self._spaces.pop(tid, None)

    def _stopped(self, tid: int, code: int, root: int) -> None:
        if code == requests.STOP_SECCOMP:
            self._stats.stops["seccomp"] += 1
            if tid in self._foreign:
                requests.resume(tid)
            else:
                self._trapped(tid)
        elif code == requests.STOP_SYSCALL:
            self._stats.stops["syscall"] += 1
            self._syscall_stop(tid)
        elif code <= signal.NSIG:
            self._stats.stops["signal"] += 1
            if code in FORWARDED and self._tgid(tid) == root:
                self.on_signal(code)
            self._go_on(tid, code)
        else:
            self._stats.stops["event"] += 1
            self._event(tid, code)

    def _event(self, tid: int, code: int) -> None:
        if code >> 8 == requests.PTRACE_EVENT_STOP and code & 0x7F in _GROUP_STOPS:
            requests.listen(tid)
            return
        if code in requests.STOPS_NEW_TASK:
            if tid in self._foreign:
                self._foreign.add(requests.event_message(tid))
        elif code == requests.STOP_EXEC:
            former = requests.event_message(tid)
            if former != tid:  # a thread other than the leader: it has the leader's id now
                self._forget(former)
            self._forget(tid)
            self._tgids[tid] = tid
            if procfs.root_identity(tid) not in {None, self._root}:
                self._foreign.add(tid)  # a container's own process: no rule is for it
        self._go_on(tid)

    def _go_on(self, tid: int, signum: int = 0) -> None:
        if tid in self._pending:
            requests.resume_to_syscall_stop(tid, signum)
        else:
            requests.resume(tid, signum)

    def _tgid(self, tid: int) -> int:
        tgid = self._tgids.get(tid)
        if tgid is None:
            tgid = procfs.thread_group(tid)
            if tgid is None:  # it is ending
                return tid
            self._tgids[tid] = tgid
        return tgid

    # At the seccomp event.

    def _trapped(self, tid: int) -> None:
        registers = self._registers
        registers.load(tid)
        words = registers.words
        number = words[ORIG_RAX]
        call = PATH_CALLS.get(number)
        if call is None:
            if number in STATFS_CALLS:
                self._await(tid, Call(self._finish_statfs, number, self._entry_first))
            else:
                requests.resume(tid)
            return
        path = self._memory.read_path(tid, words[ARGUMENTS[call.path]])
        masked = self._masked.pop(tid, None) if self._masked else None
        decision = None
        if path and self._paths.may_concern(path):
            absolute = path if path[:1] == b"/" else self._resolved(tid, call, path)
            if absolute is not None:
                decision = self._paths.decide(absolute, call.group)
                if log.isEnabledFor(logging.DEBUG):
                    log.debug("%d %s %s: %s", tid, call.name, os.fsdecode(absolute), decision)
                path = absolute
        if decision is not None:
            awaited = Call(self._finish_path, number, self._entry_first, of=call)
            if masked is not None:
                awaited.mask, awaited.tries = masked
            if self._carry_out(tid, awaited, path or b"", decision):
                return
        elif masked is not None:
            requests.set_signal_mask(tid, masked[0])
        requests.resume(tid)

    def _resolved(self, tid: int, call: PathCall, path: bytes) -> bytes | None:
        folder = AT_FDCWD if call.dirfd is None else self._registers.words[ARGUMENTS[call.dirfd]]
        base = procfs.descriptor_path(tid, folder)
        # Without one the descriptor is wrong, and the kernel's answer will say so.
        return None if base is None else base.rstrip(b"/") + b"/" + path

    def _carry_out(self, tid: int, call: Call, path: bytes, decision: Decision) -> bool:
        """Do what was decided; False: nothing, and the tracee is still stopped."""
        target = self._target(tid, path, decision)
        if target is not None:
            space = self._spaces.setdefault(self._tgid(tid), Space())
            if not space.usable:
                self._stats.unchanged["no memory in the tracee"] += 1
            elif not space.free:
                if call.mask is not None:
                    self._masked[tid] = (call.mask, call.tries)
                self._map_memory(tid, call.number)
                return True
            else:
                self._replace_path(tid, call, target[0], space)
                self._stats.applied.update(target[1])
        if decision.mask is not None and call.mask is None:
            if self._block_signals(tid, call, decision.mask):
                return True
        elif call.mask is None and not call.restore:
            return False
        self._await(tid, call)
        return True

    def _await(self, tid: int, call: Call) -> None:
        self._pending[tid] = call
        requests.resume_to_syscall_stop(tid)

    def _target(self, tid: int, path: bytes, decision: Decision) -> tuple[bytes, Mapping[str, int]] | None:
        """Return the path to open instead, if the tracee can reach it, and what to count then."""
        counts: Mapping[str, int]
        if decision.redirect is not None:
            rule, target = decision.redirect
            counts = {rule.label: 1}
        elif decision.mount_table:
            found = self._tables.stand_in(tid, path)
            if found is None:
                return None
            target, counts = found
        else:
            return None
        if len(target) >= PATH_MAX or not procfs.reaches(tid, target):
            self._stats.unchanged["no such target"] += 1
            return None
        return target, counts

    def _replace_path(self, tid: int, call: Call, target: bytes, space: Space) -> None:
        words = self._registers.words
        address = space.free.pop()
        call.slot = (space, address)
        replacements = {ARGUMENTS[call.of.path]: address}
        written = self._memory.write(tid, address, target + b"\0")
        if call.number == OPENAT2:
            # RESOLVE_BENEATH and its like speak of the path that the program named.
            how = self._memory.read(tid, words[ARGUMENTS[2]], _OPEN_HOW)
            if len(how) == _OPEN_HOW:
                how = how[:_RESOLVE_AT] + bytes(_OPEN_HOW - _RESOLVE_AT)
                written = written and self._memory.write(tid, address + PATH_MAX, how)
                if words[ARGUMENTS[3]] == _OPEN_HOW:
                    replacements[ARGUMENTS[2]] = address + PATH_MAX
        if not written:
            self._stats.unchanged["scratch memory not writable"] += 1
            return
        call.restore = tuple((index, words[index]) for index in replacements)
        for index, value in replacements.items():
            words[index] = value
        self._registers.store(tid)

    def _map_memory(self, tid: int, number: int) -> None:
        registers = self._registers
        call = Call(self._finish_map, number, self._entry_first, saved=registers.save())
        registers.words[ORIG_RAX] = MMAP
        for index, value in zip(ARGUMENTS, _MMAP_ARGUMENTS, strict=True):
            registers.words[index] = value
        registers.store(tid)
        self._await(tid, call)

    def _block_signals(self, tid: int, call: Call, rule: MaskRule) -> bool:
        """Block all signals for a call; True: it has to be run again, and the tracee runs.

        A signal that arrived just before the mask still interrupts the call in gVisor.
        An open is simply repeated then. A change may have been made already, so for
        it a harmless call comes first, which takes the interruption.
        """
        self._stats.applied[rule.label] += 1
        call.mask = requests.signal_mask(tid)
        requests.set_signal_mask(tid, requests.ALL_SIGNALS)
        if call.of.group is not Group.CHANGE:
            return False
        registers = self._registers
        call.saved = registers.save()
        call.finish = self._finish_drain
        registers.words[ORIG_RAX] = _GETPID
        registers.store(tid)
        self._await(tid, call)
        return True

    # At the exit of a call.

    def _syscall_stop(self, tid: int) -> None:
        call = self._pending.get(tid)
        if call is None:
            requests.resume(tid)
        elif call.at_entry:
            call.at_entry = False
            requests.resume_to_syscall_stop(tid)
        else:
            del self._pending[tid]
            self._registers.load(tid)
            call.finish(tid, call)
            requests.resume(tid)

    def _run_again(self, tid: int, call: Call) -> None:
        """Let the tracee execute its system call instruction once more."""
        self._registers.words[RIP] -= requests.SYSCALL_LENGTH
        self._registers.words[RAX] = call.number
        self._registers.store(tid)

    def _finish_map(self, tid: int, call: Call) -> None:
        address = self._registers.words[RAX]
        space = self._spaces.setdefault(self._tgid(tid), Space())
        if -_LAST_ERRNO <= requests.signed(address) < 0:
            space.usable = False
        else:
            space.free.extend(range(address, address + _MMAP_ARGUMENTS[1], _SLOT))
        self._registers.recall(call.saved)
        self._run_again(tid, call)

    def _finish_drain(self, tid: int, call: Call) -> None:
        if call.mask is not None:
            self._masked[tid] = (call.mask, 0)
        self._registers.recall(call.saved)
        self._run_again(tid, call)

    def _finish_path(self, tid: int, call: Call) -> None:
        words = self._registers.words
        for index, value in call.restore:
            words[index] = value
        if call.slot is not None:
            call.slot[0].free.append(call.slot[1])
        interrupted = requests.signed(words[RAX]) == -errno.EINTR
        if interrupted and call.mask is not None and call.of.group is Group.OPEN and call.tries < _TRIES:
            self._stats.restarted += 1
            self._masked[tid] = (call.mask, call.tries + 1)
            self._run_again(tid, call)
            return
        if call.restore:
            self._registers.store(tid)
        if call.mask is not None:
            requests.set_signal_mask(tid, call.mask)

    def _finish_statfs(self, tid: int, call: Call) -> None:
        """Change f_type, the first 8 bytes of struct statfs (uapi asm-generic/statfs.h)."""
        words = self._registers.words
        if words[RAX] != 0:
            return
        buffer = words[ARGUMENTS[1]]
        original = int.from_bytes(self._memory.read(tid, buffer, 8), "little")
        if original not in self._magics:
            return
        path: bytes | None = None
        for rule in self._rules.statfs:
            if rule.original != original:
                continue
            if rule.under is not None:
                path = path or self._statfs_path(tid, call.number)
                if not below(path, rule.under):
                    continue
            if self._memory.write(tid, buffer, rule.replacement.to_bytes(8, "little")):
                self._stats.applied[rule.label] += 1
            return

    def _statfs_path(self, tid: int, number: int) -> bytes:
        argument = self._registers.words[ARGUMENTS[0]]
        if number == FSTATFS:
            return procfs.descriptor_path(tid, argument) or b"/"
        path = self._memory.read_path(tid, argument) or b"/"
        if path[:1] != b"/":
            path = (procfs.descriptor_path(tid, AT_FDCWD) or b"") + b"/" + path
        return normal(path)
