"""Handles the stops of a trapped call: decide, change, and restore."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import messages, procfs, repeating, requests
from pytest_k3s_sandbox.layers.interceptor.answers import Answers
from pytest_k3s_sandbox.layers.interceptor.calls import NO_PATH, Call
from pytest_k3s_sandbox.layers.interceptor.matching import NOTHING, Decision, below, names_a_folder, normal
from pytest_k3s_sandbox.layers.interceptor.memory import PATH_MAX, Memory
from pytest_k3s_sandbox.layers.interceptor.overlays import Overlays
from pytest_k3s_sandbox.layers.interceptor.profiles import Profile
from pytest_k3s_sandbox.layers.interceptor.requests import ARGUMENTS, ORIG_RAX, RAX, RIP, SYSCALL, Registers
from pytest_k3s_sandbox.layers.interceptor.rewriting import Rewriter
from pytest_k3s_sandbox.layers.interceptor.rules import FaultRule, MaskRule, RetryRule
from pytest_k3s_sandbox.layers.interceptor.stats import Stats
from pytest_k3s_sandbox.layers.interceptor.syscalls import (
    AT_FDCWD,
    CLOSE,
    DESCRIPTOR_CALLS,
    FSTATFS,
    GETPID,
    LIST_CALLS,
    PATH_CALLS,
    STATFS,
    STATX,
    Group,
    PathCall,
)

_TRIES: Final = 3
_INTERRUPTED: Final = frozenset({-errno.EINTR, -512, -513, -514})
"""Results of interrupted calls: EINTR, and ERESTARTSYS and similar (linux/errno.h), which Linux turns into
EINTR or a restart before the signal's handler runs."""


class TrappedCalls:
    """Applies rules to calls, one stop at a time.

    Attributes:
        label: The rule that statistics attribute the last stop to; may be empty.
    """

    def __init__(
        self,
        stats: Stats,
        overlays: Overlays,
        registers: Registers,
        memory: Memory,
        process_of: Callable[[int], int],
        *,
        entry_first: bool,
    ) -> None:
        """Prepare; ``process_of`` finds the process of a thread."""
        self.label = ""
        self._stats = stats
        self._overlays = overlays
        self._registers = registers
        self._memory = memory
        self._process_of = process_of
        self._entry_first = entry_first
        self._masked: dict[int, tuple[int, int]] = {}
        self._rewriter = Rewriter(registers, memory, process_of)
        self._answers = Answers(stats, registers, memory, self._rewriter, self._finish_interrupted)
        self._descriptors: dict[int, dict[int, MaskRule]] = {}
        self._failed: Counter[FaultRule] = Counter()

    def forget(self, tid: int, call: Call | None) -> None:
        """Note that a thread, which was in ``call``, has ended or executes another program."""
        self._rewriter.forget(tid, call)
        self._answers.forget(tid)
        self._masked.pop(tid, None)
        self._descriptors.pop(tid, None)

    def at_call(self, tid: int, profile: Profile) -> Call | None:
        """Decide at the seccomp event; return the call whose exit stop to wait for, or None."""
        self.label = ""
        registers = self._registers
        registers.load(tid)
        words = registers.words
        number = words[ORIG_RAX]
        of = PATH_CALLS.get(number)
        if of is None:
            name = DESCRIPTOR_CALLS[number]
            self._stats.calls[name] += 1
            if number == CLOSE:
                return self._closing(tid)
            return (
                self._statfs(tid, profile, None) if number == FSTATFS else self._listing(tid, profile, name)
            )
        self._stats.calls[of.name] += 1
        path = self._memory.read_path(tid, words[ARGUMENTS[of.path]])
        masked = self._masked.pop(tid, None) if self._masked else None
        decision = NOTHING
        if path and profile.paths.may_concern(path):
            path = path if path[:1] == b"/" else self._resolved(tid, of, path)
            if path is not None:
                decision = profile.paths.decide(path, of)
        if messages.debugging():
            from pytest_k3s_sandbox.layers.interceptor.explaining import explain

            explain(tid, of, path, profile.paths, decision)
        if decision is not NOTHING and path:
            call = Call(self._finish_path, number, self._entry_first, of)
            call.path = path
            if masked is not None:
                call.mask, call.tries = masked
            awaited = self._carried_out(tid, call, profile, decision)
            if awaited is not None:
                return awaited
        if masked is not None:
            requests.set_signal_mask(tid, masked[0])
        return self._answer(tid, profile, of, path)

    def at_signal(self, tid: int, profile: Profile) -> None:
        """Repeat the call that a signal interrupted, at the signal-delivery-stop, if a rule says so.

        The program has not seen the call's result yet. The signal's handler runs first, and returns to the
        ``syscall`` instruction.
        """
        registers = self._registers
        registers.load(tid)
        words = registers.words
        if requests.signed(words[RAX]) not in _INTERRUPTED:
            return
        if profile.repeats(words[RIP], words[ORIG_RAX]):
            return
        # Outside a system call, the register may hold such a number by chance.
        if self._memory.read(tid, words[RIP] - requests.SYSCALL_LENGTH, requests.SYSCALL_LENGTH) != SYSCALL:
            return
        number = words[ORIG_RAX]
        if number == CLOSE:
            rule = next((rule for rule in profile.rules.retries if Group.CLOSE in rule.groups), None)
            words[RAX] = 0
        else:
            rule = self._retry(tid, profile, number)
            words[RIP] -= requests.SYSCALL_LENGTH
            words[RAX] = number
        if rule is not None:
            registers.store(tid)
            self._stats.restarted += 1
            self._stats.applied[rule.label] += 1
            self.label = rule.label

    def at_fault(self, tid: int) -> bool:
        """Make the call whose path code of ours could not read, at the stop of the fault's signal.

        Returns:
            Whether that was it; the program must not get the signal then.
        """
        registers = self._registers
        registers.load(tid)
        following = repeating.after_fault(registers.words[RIP])
        # A program may have its own code at the page's address.
        if following is None or not repeating.is_ours(
            self._memory.read(tid, repeating.ADDRESS, repeating.PAGE)
        ):
            return False
        if not requests.is_fault(tid):
            return False
        registers.words[RIP] = following
        registers.store(tid)
        return True

    def _retry(self, tid: int, profile: Profile, number: int) -> RetryRule | None:
        """Return the retry rule for an interrupted call."""
        words = self._registers.words
        of = PATH_CALLS.get(number)
        group, path = Group.STATFS if number == FSTATFS else Group.LIST, None
        if number == FSTATFS or number in LIST_CALLS:
            path = procfs.descriptor_path(tid, words[ARGUMENTS[0]])
        elif of is not None:
            group, path = of.group, self._memory.read_path(tid, words[ARGUMENTS[of.path]])
            if path is not None and path[:1] != b"/":  # an empty path is its descriptor's
                path = self._resolved(tid, of, path)
        return profile.paths.retries(path, group) if path else None

    def _answer(self, tid: int, profile: Profile, of: PathCall, path: bytes | None) -> Call | None:
        """Wait for the result of an unchanged call, if a rule may change the result."""
        if of.group is Group.STATFS:
            return self._statfs(tid, profile, path or b"/")
        number = self._registers.words[ORIG_RAX]
        if number == STATX and profile.rules.statx and path is not None:
            call = Call(self._finish_path, number, self._entry_first, of)
            call.path = path
            if self._answers.watch_statx(tid, call, profile):
                return call
        if profile.exits and path and not profile.repeats(self._registers.words[RIP], number):
            # Inside the folder the path may be relative, which may_concern() has resolved.
            rule = profile.paths.retries(path, of.group, exit_of=of.name)
            if rule is not None:
                return self._watched(profile, of)
        if profile.reads_links and of.group is Group.READLINK and path and b"/fd/" in path:
            return Call(
                lambda tid, call: self._answers.readlink(tid, call, profile), number, self._entry_first, of
            )
        return None

    def _listing(self, tid: int, profile: Profile, name: str) -> Call | None:
        """Repeat an interrupted getdents, which has read nothing."""
        words = self._registers.words
        if profile.repeats(words[RIP], words[ORIG_RAX]):
            return None
        path = procfs.descriptor_path(tid, words[ARGUMENTS[0]])
        if path is None or profile.paths.retries(path, Group.LIST, exit_of=name) is None:
            return None
        return self._watched(profile, NO_PATH)

    def _watched(self, profile: Profile, of: PathCall) -> Call | None:
        """Repeat an interrupted call, at its exit stop."""
        number = self._registers.words[ORIG_RAX]
        return Call(
            lambda tid, call: self._finish_interrupted(tid, call, profile), number, self._entry_first, of
        )

    def _resolved(self, tid: int, call: PathCall, path: bytes) -> bytes | None:
        folder = AT_FDCWD if call.dirfd is None else self._registers.words[ARGUMENTS[call.dirfd]]
        base = procfs.descriptor_path(tid, folder)
        # Without a path the descriptor is invalid, and the kernel returns EBADF.
        return None if base is None else base.rstrip(b"/") + b"/" + path

    def _carried_out(self, tid: int, call: Call, profile: Profile, decision: Decision) -> Call | None:
        """Carry out the decision; None if there is nothing to do."""
        fault = decision.fault
        if (
            fault is not None
            and (not fault.unmounted or procfs.nothing_mounted(tid, call.path))
            and self._fails(fault)
        ):
            return self._failing(tid, call, fault)
        target = self._target(tid, profile, call.path, decision)
        if target is not None:
            mapping = self._rewriter.prepare(tid, call.number, entry_first=self._entry_first)
            if mapping is not None:
                if call.mask is not None:
                    self._masked[tid] = (call.mask, call.tries)
                return mapping
            if self._rewriter.replace(tid, call, target[0]):
                self._stats.applied.update(target[1])
                call.label = self.label = next(iter(target[1]))
                if call.number == STATX:
                    self._answers.watch_statx(tid, call, profile)
            else:
                self._unchanged(tid, "no memory in the tracee")
        rule = decision.mask
        if rule is not None:
            call.masked_by = rule
            call.label = self.label = rule.label
            if call.mask is None:
                return self._blocking(tid, call, rule)
        return call if call.mask is not None or call.restore else None

    def _unchanged(self, tid: int, reason: str) -> None:
        self._stats.unchanged[reason] += 1
        if messages.debugging():
            messages.say("debug", f"{tid} left alone: {reason}")

    def _target(
        self, tid: int, profile: Profile, path: bytes, decision: Decision
    ) -> tuple[bytes, Mapping[str, int]] | None:
        """Return the path to open instead, if the tracee can reach it, and the labels to count."""
        counts: Mapping[str, int]
        if decision.redirect is not None:
            rule, target = decision.redirect
            counts = {rule.label: 1}
            if rule.content is not None:
                target = self._overlays.content(tid, rule, path)
        elif decision.rewrites:
            found = self._overlays.rewritten(tid, normal(path), decision, profile.rules)
            if found is None:
                return None
            target, counts = found
        else:
            return None
        if len(target) + 1 >= PATH_MAX or not procfs.reaches(tid, target):
            self._unchanged(tid, "no such target")
            return None
        # Keep the final slash, so that the kernel returns ENOTDIR if the target is a file.
        return target + b"/" if names_a_folder(path) else target, counts

    def _blocking(self, tid: int, call: Call, rule: MaskRule) -> Call:
        """Block all signals for a call.

        In gVisor a signal that arrived just before the mask still interrupts the call. The tracer repeats an
        open then. A change may be complete already, so a harmless call comes before it and takes the
        interruption.
        """
        self._stats.applied[rule.label] += 1
        self.label = call.label = rule.label
        call.mask = requests.signal_mask(tid)
        requests.set_signal_mask(tid, requests.ALL_SIGNALS)
        if call.of.group is not Group.CHANGE:
            return call
        call.finish = self._finish_drain
        return self._rewriter.instead(tid, call, GETPID)

    def _closing(self, tid: int) -> Call | None:
        """Block signals while a descriptor of a masked path is closed."""
        opened = self._descriptors.get(self._process_of(tid)) if self._descriptors else None
        rule = opened.pop(self._registers.words[ARGUMENTS[0]] & 0xFFFF_FFFF, None) if opened else None
        if rule is None:
            return None
        return self._blocking(tid, Call(self._finish_close, CLOSE, self._entry_first), rule)

    def _fails(self, rule: FaultRule) -> bool:
        seen = self._failed[rule]
        self._failed[rule] = seen + 1
        return seen >= rule.skip and (rule.times is None or seen < rule.skip + rule.times)

    def _failing(self, tid: int, call: Call, rule: FaultRule) -> Call:
        self._stats.applied[rule.label] += 1
        self.label = call.label = rule.label
        call.fault = rule
        call.finish = self._finish_fault
        return self._rewriter.instead(tid, call, GETPID)

    def _statfs(self, tid: int, profile: Profile, path: bytes | None) -> Call | None:
        """Wait for the result, if a rule may change it."""
        if not profile.rules.statfs and not profile.exits:
            return None
        if path is None:
            number = FSTATFS
            where = b""
            if profile.places is not None:
                where = procfs.descriptor_path(tid, self._registers.words[ARGUMENTS[0]]) or b"/"
        else:
            number = STATFS
            where = path
            if path[:1] != b"/":
                where = (procfs.descriptor_path(tid, AT_FDCWD) or b"") + b"/" + path
            where = normal(where)
        if profile.places is not None and not any(below(where, folder) for folder in profile.places):
            return None
        call = Call(lambda tid, call: self._answers.statfs(tid, call, profile), number, self._entry_first)
        call.path = where
        return call

    # At the exit of a call. Each returns the next call to wait for, or None.

    def _finish_drain(self, tid: int, call: Call) -> None:
        if call.mask is not None:
            self._masked[tid] = (call.mask, 0)
        self._registers.recall(call.saved)
        self._rewriter.run_again(tid, call)

    def _finish_fault(self, tid: int, call: Call) -> None:
        self._registers.recall(call.saved)
        if call.fault is not None:
            self._registers.words[RAX] = (1 << 64) - call.fault.errno
        self._registers.store(tid)
        if call.mask is not None:
            requests.set_signal_mask(tid, call.mask)

    def _finish_path(self, tid: int, call: Call) -> None:
        words = self._registers.words
        result = requests.signed(words[RAX])
        self._rewriter.restore(call)
        if call.mask is not None and call.of.group is Group.OPEN:
            if result == -errno.EINTR and call.tries < _TRIES:
                self._stats.restarted += 1
                self._masked[tid] = (call.mask, call.tries + 1)
                self._rewriter.run_again(tid, call)
                return
            if result >= 0 and call.masked_by is not None and Group.CLOSE in call.masked_by.groups:
                self._descriptors.setdefault(self._process_of(tid), {})[result] = call.masked_by
        if call.restore:
            self._registers.store(tid)
        if call.mask is not None:
            requests.set_signal_mask(tid, call.mask)

    def _finish_close(self, tid: int, call: Call) -> None:
        """Turn EINTR into success: close(2) has closed the descriptor."""
        if requests.signed(self._registers.words[RAX]) == -errno.EINTR:
            self._stats.restarted += 1
            self._registers.words[RAX] = 0
            self._registers.store(tid)
        if call.mask is not None:
            requests.set_signal_mask(tid, call.mask)

    def _finish_interrupted(self, tid: int, call: Call, profile: Profile) -> None:
        """Repeat the call if a signal interrupted it, whichever thread the signal is delivered to.

        The kernel delivers the thread's own signal, if any, before the repeated call.
        """
        if requests.signed(self._registers.words[RAX]) not in _INTERRUPTED:
            return
        rule = self._retry(tid, profile, call.number)
        if rule is not None:
            self._rewriter.run_again(tid, call)
            self._stats.restarted += 1
            self._stats.applied[rule.label] += 1
            self.label = call.label = rule.label
