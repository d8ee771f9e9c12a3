"""The tracer: one loop that handles the stops of all tracees."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from time import perf_counter
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import messages, procfs, repeating, requests, starting
from pytest_k3s_sandbox.layers.interceptor.calls import Call
from pytest_k3s_sandbox.layers.interceptor.forward import FORWARDED
from pytest_k3s_sandbox.layers.interceptor.inject import Injector
from pytest_k3s_sandbox.layers.interceptor.installing import Installation
from pytest_k3s_sandbox.layers.interceptor.memory import Memory
from pytest_k3s_sandbox.layers.interceptor.overlays import Overlays
from pytest_k3s_sandbox.layers.interceptor.profiles import Profile, Profiles
from pytest_k3s_sandbox.layers.interceptor.requests import PtraceError
from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch
from pytest_k3s_sandbox.layers.interceptor.stats import Stats
from pytest_k3s_sandbox.layers.interceptor.syscalls import MMAP, SECCOMP
from pytest_k3s_sandbox.layers.interceptor.trapped import TrappedCalls
from pytest_k3s_sandbox.layers.interceptor.waiting import Waiter

_STOPPED: Final = 0x7F
"""The low byte of a stopped tracee's wait status (WIFSTOPPED of waitpid(2))."""
_FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS})
"""Signals of a program that reads memory that is not there."""
_SECCOMP: Final = "seccomp"
_SYSCALL: Final = "syscall"
_SIGNAL: Final = "signal"
_EVENT: Final = "event"


class Tracer:
    """Applies a rule set to a program and its descendants.

    Attributes:
        on_signal: Called with each forwarded signal that the kernel delivers to the program.
        on_end: Called when the program has ended.
        status: The program's wait status, as of waitpid(2), after its end.
    """

    def __init__(self, profiles: Profiles, stats: Stats, scratch: Scratch) -> None:
        """Prepare; ``stats`` knows the order of stops."""
        self._profiles = profiles
        self._stats = stats
        self._registers = requests.Registers()
        memory = Memory()
        self._calls = TrappedCalls(
            stats,
            Overlays(scratch),
            self._registers,
            memory,
            self._process_of,
            entry_first=stats.entry_first,
        )
        self._memory = memory
        self._programs = repeating.GoPrograms()
        self._injector = Injector(self._registers, memory) if profiles.selective or profiles.paged else None
        self._pending: dict[int, Call] = {}
        self._processes: dict[int, int] = {}
        self._known: dict[int, Profile] = {}
        self._filters: dict[int, frozenset[bytes]] = {}
        self._namespace = procfs.pid_namespace("self")
        self._other_namespace: dict[int, bool] = {}
        self.on_signal: Callable[[int], None] = lambda _signum: None
        self.on_end: Callable[[], None] = lambda: None
        self.status = 0

    def run(self, root: int, *, until_root_ends: bool = False) -> None:
        """Trace until no tracee is left, or until ``root`` has ended."""
        self._processes[root] = root
        counts, spent, calls = self._stats.stops, self._stats.seconds, self._calls
        wait = Waiter().next
        while True:
            try:
                tid, status = wait()
            except ChildProcessError:
                return
            if status & 0xFF != _STOPPED:
                self._forget(tid)
                self._filters.pop(tid, None)
                if tid == root:
                    self.status = status
                    self.on_end()
                    if until_root_ends:
                        return
                continue
            began = perf_counter()
            calls.label = ""
            kind = _EVENT
            try:
                kind = self._stopped(tid, status >> 8, root)
            except PtraceError as error:
                # ESRCH: the tracee was killed meanwhile, as the next wait reports.
                if error.errno != errno.ESRCH:
                    messages.say("warning", f"tracee {tid}: {error.strerror}")
            took = perf_counter() - began
            counts[kind] += 1
            spent[kind] += took
            if calls.label:
                self._stats.rule_seconds[calls.label] += took

    def _stopped(self, tid: int, code: int, root: int) -> str:
        """Handle one stop, resume the tracee, and return the kind of the stop."""
        if code == requests.STOP_SECCOMP:
            call = self._calls.at_call(tid, self._known.get(tid) or self._profile(tid))
            if call is None:
                requests.resume(tid)
            else:
                self._await(tid, call)
            return _SECCOMP
        if code == requests.STOP_SYSCALL:
            self._syscall_stop(tid)
            return _SYSCALL
        if code <= signal.NSIG:
            if code in _FAULTS and self._calls.at_fault(tid):
                self._go_on(tid)
                return _SIGNAL
            if code in FORWARDED and self._process_of(tid) == root:
                self.on_signal(code)
            if self._profiles.retries and tid not in self._pending:
                profile = self._known.get(tid) or self._profile(tid)
                if profile.retries:
                    self._calls.at_signal(tid, profile)
            self._go_on(tid, code)
            return _SIGNAL
        if code in requests.GROUP_STOPS:
            requests.listen(tid)
            return _EVENT
        self._event(tid, code)
        self._go_on(tid)
        return _EVENT

    def _event(self, tid: int, code: int) -> None:
        if code == requests.STOP_EXEC:
            self._executed(tid)
        elif self._filters and code in requests.STOPS_NEW_PROCESS:
            self._forked(tid)

    def _await(self, tid: int, call: Call) -> None:
        self._pending[tid] = call
        requests.resume_to_syscall_stop(tid)

    def _go_on(self, tid: int, signum: int = 0) -> None:
        if tid in self._pending:
            requests.resume_to_syscall_stop(tid, signum)
        else:
            requests.resume(tid, signum)

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
            following = call.finish(tid, call)
            self._calls.label = self._calls.label or call.label
            if following is None:
                requests.resume(tid)
            else:
                self._await(tid, following)

    def _forget(self, tid: int) -> None:
        self._calls.forget(tid, self._pending.pop(tid, None))
        self._processes.pop(tid, None)
        self._known.pop(tid, None)
        self._other_namespace.pop(tid, None)

    def _process_of(self, tid: int) -> int:
        process = self._processes.get(tid)
        if process is None:
            process = procfs.thread_group(tid)
            if process is None:  # it is ending
                return tid
            self._processes[tid] = process
        return process

    def _profile(self, tid: int) -> Profile:
        process = self._process_of(tid)
        profile = self._known.get(process)
        if profile is None:
            profile = self._known[process] = self._profiles.of(tid)
        self._known[tid] = profile
        return profile

    def _forked(self, tid: int) -> None:
        """Note the filters that a new process inherits.

        gVisor evaluates all filters for every system call when it creates a thread (``populateCache`` in its
        pkg/sentry/kernel/seccomp.go), so the tracer does not load a filter twice. A process with unknown
        filters gets its filter again, which changes no result.

        In gVisor the event's message is the child's id in the namespace of its parent (``ptraceClone`` in
        pkg/sentry/kernel/ptrace.go), on Linux in the tracer's. A child in another namespace gets no note: in
        the tracer's own, its number belongs to another process, perhaps containerd.
        """
        process = self._process_of(tid)
        elsewhere = self._other_namespace.get(process)
        if elsewhere is None:
            elsewhere = procfs.pid_namespace(process) not in {None, self._namespace}
            self._other_namespace[process] = elsewhere
        if elsewhere:
            return
        child = requests.event_message(tid)
        inherited = self._filters.get(process)
        if inherited is not None:
            self._filters[child] = inherited
        else:
            self._filters.pop(child, None)  # of an earlier process with this id

    # At an exec.

    def _executed(self, tid: int) -> None:
        former = requests.event_message(tid)
        if former != tid:  # a thread that took the leader's id at its execve
            self._forget(former)
        self._forget(tid)
        self._processes[tid] = tid
        if self._injector is None:
            return
        profile = self._profile(tid)
        if messages.debugging():
            names = ", ".join(os.fsdecode(path) for path in procfs.program_paths(tid))
            messages.say("debug", f"{tid} executes {names}: {len(profile.rules.every())} rules are for it")
        for rule in profile.rules.substitutes:
            if rule.folder_option is not None and starting.substitute(tid, rule):
                self._stats.applied[rule.label] += 1
        function = self._programs.function(tid) if profile.page else None
        if function is not None:
            steps = Installation(
                self._injector, self._registers, self._memory, function, profile.page, self._executable
            )
            self._pending[tid] = Call(steps.begin, MMAP, at_entry=False)
        elif profile.filter and profile.filter not in self._filters.get(tid, ()):
            self._pending[tid] = Call(self._executable, SECCOMP, at_entry=False)

    def _executable(self, tid: int, _call: Call) -> Call | None:
        """Make the program load its filter, at the exit stop of execve."""
        program = self._known[tid].filter
        if not program or program in self._filters.get(tid, ()):
            return None
        saved = self._injector.begin(tid, program) if self._injector is not None else None
        if saved is None:
            self._unfiltered(tid, "a 32-bit program, or there is no vDSO")
            return None
        return self._loading(saved)

    def _loading(self, saved: bytes) -> Call:
        call = Call(self._loaded, SECCOMP, at_entry=True)
        call.saved = saved
        return call

    def _loaded(self, tid: int, call: Call) -> Call | None:
        if self._injector is None:
            return None
        result = self._injector.end(tid, call.saved, self._known[tid].filter)
        if isinstance(result, bytes):
            return self._loading(result)
        if result:
            self._unfiltered(tid, os.strerror(result))
        else:
            self._stats.filters += 1
            self._filters[tid] = self._filters.get(tid, frozenset()) | {self._known[tid].filter}
        return None

    def _unfiltered(self, tid: int, cause: str) -> None:
        self._stats.unchanged["no filter"] += 1
        messages.say("warning", f"process {tid} runs without its rules: no filter could be loaded ({cause})")
