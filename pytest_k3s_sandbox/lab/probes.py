"""Programs of several kinds that print the kernel's answers, for experiments with the interceptor.

A static C program and one with glibc, a Go program, Python and busybox ask a kernel in different ways:
by raw calls, through libc, by a runtime of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.lab.programs import SOURCES, build
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, Sandbox

Question = tuple[str, str]
"""A call and the path that it is about."""

READS = ("open", "openat", "openat2", "fopen")
"""Calls that a program reads a file by; an answer is the file's first line."""

NO_SUCH_CALL = "errno 38"


@dataclass(frozen=True)
class Onlooker:
    """A program.

    Attributes:
        name: Its name in the tests.
        calls: The calls that it can make.
        words: Its command line without threads and questions; empty: a script of busybox.
        built: The name in :data:`~.programs.RECIPES` of the program to be built, if any.
    """

    name: str
    calls: tuple[str, ...]
    words: tuple[str, ...] = ()
    built: str | None = None

    def argv(self, threads: int, questions: Sequence[Question]) -> list[str]:
        """Return the command line that asks the questions, each in every thread."""
        if self.words:
            return [*self.words, str(threads), *(word for question in questions for word in question)]
        commands = {"open": "cat {}", "statfs": "stat -f -c 0x%t {}"}
        script = [
            f'echo "{call} {path} $(busybox {commands[call].format(path)} 2>&1 | busybox head -n 1)"'
            for call, path in questions
        ]
        return ["busybox", "sh", "-c", "; ".join(script)]


_C = ("statfs", "fstatfs", *READS)
ONLOOKERS = {
    "static C": Onlooker("static C", _C, (f"{BIN_DIR}/probe-static",), "probe-static"),
    "glibc": Onlooker("glibc", _C, (f"{BIN_DIR}/probe-glibc",), "probe-glibc"),
    "Go": Onlooker("Go", ("statfs", "fstatfs", "openat"), (f"{BIN_DIR}/probe-go",), "probe-go"),
    "Python": Onlooker(
        "Python",
        ("statfs", "fstatfs", "open"),
        (sys.executable, "-I", "-S", str(SOURCES / "probe.py")),
    ),
    "busybox": Onlooker("busybox", ("statfs", "open")),
}
"""The programs, by name."""


def build_all() -> list[Path]:
    """Return the programs that have to be put into a sandbox, built if need be."""
    return [build(each.built) for each in ONLOOKERS.values() if each.built is not None]


def look(
    sandbox: Sandbox,
    program: Onlooker,
    questions: Sequence[Question],
    *,
    threads: int = 1,
    wrap: Sequence[str] = (),
) -> dict[Question, str]:
    """Return the answers that a program gets.

    Args:
        sandbox: Where it runs.
        program: Which.
        questions: The questions.
        threads: How many threads ask.
        wrap: Words before its command line: a tracer.

    Raises:
        StartError: It failed.
        AssertionError: Its threads did not see the same.
    """
    done = sandbox.run([*wrap, *program.argv(threads, questions)], timeout=60)
    seen: dict[Question, str] = {}
    for line in done.stdout.splitlines():
        call, path, *answer = line.split(" ", 2)
        if (call, path) in seen:
            raise AssertionError(f"{program.name}: two answers to {call} {path}: {done.stdout}")
        seen[call, path] = " ".join(answer)
    if set(seen) != set(questions):
        raise AssertionError(f"{program.name}: {done.stdout}{done.stderr}")
    return seen


def changed(plain: Mapping[Question, str], answers: Mapping[Question, str]) -> dict[Question, str]:
    """Return the answers expected under rules: the plain answers, with the rules' changes.

    A call that the kernel does not have stays one.
    """
    return {
        question: text if text == NO_SUCH_CALL else answers.get(question, text)
        for question, text in plain.items()
    }


def compared(
    plain: Mapping[Question, str], under: Mapping[Question, str], answers: Mapping[Question, str]
) -> tuple[bool, str]:
    """Return whether only the answers of the rules changed for a program, and the count in words.

    Args:
        plain: Its answers without rules.
        under: Its answers with them.
        answers: The answers that the rules change; at least one.
    """
    wanted = changed(plain, answers)
    if wanted == plain:
        return False, "the rules change nothing that was asked for"
    wrong = [
        f"{call} {path}: {under[call, path]}"
        for call, path in wanted
        if under[call, path] != wanted[call, path]
    ]
    right = len(wanted) - len(wrong)
    return not wrong, f"{right} of {len(wanted)} answers" + "".join(f"; {one}" for one in wrong[:3])
