"""Changes a file that a program is about to read, when the program starts.

The tracee stops at each execve(2) anyway. Calls that stop for their path cost more: each run of crun opens
some 30 files, and a pod takes ten runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pytest_k3s_sandbox.layers.interceptor import messages, procfs
from pytest_k3s_sandbox.layers.interceptor.rules import SubstituteRule
from pytest_k3s_sandbox.layers.interceptor.syscalls import AT_FDCWD
from pytest_k3s_sandbox.support import files

LONGEST = 4 << 20
"""Bytes of a file that is looked at; a container's specification has some 10,000."""


def argument(words: Sequence[bytes], option: str) -> bytes | None:
    """Return the value of an option in a command line: ``--bundle DIR`` or ``--bundle=DIR``.

    Args:
        words: The command line, with the program.
        option: The option.
    """
    name = os.fsencode(option)
    for index, word in enumerate(words[1:], 1):
        if word == name and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(name + b"="):
            return word[len(name) + 1 :]
    return None


def substitute(tid: int, rule: SubstituteRule) -> bool:
    """Change the file of a rule for a tracee at its execve-stop.

    Args:
        tid: The tracee.
        rule: A rule with a ``folder_option``.

    Returns:
        Whether the file was changed. A file that is missing, or not a regular one, is the program's to judge.
    """
    folder = argument(procfs.command_line(tid), rule.folder_option or "")
    if folder is None:
        return False
    if not folder.startswith(b"/"):
        folder = (procfs.descriptor_path(tid, AT_FDCWD) or b"") + b"/" + folder
    path = b"/proc/%d/root%s/%s" % (tid, folder, os.fsencode(rule.path))
    try:
        return _changed(path, rule)
    except OSError as error:
        messages.say("debug", f"{tid}: {rule.label} in {os.fsdecode(folder)}: {error}")
        return False


def _changed(path: bytes, rule: SubstituteRule) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        text, mode = file.read(LONGEST), os.fstat(descriptor).st_mode & 0o777
    changed, count = re.subn(os.fsencode(rule.find), os.fsencode(rule.replacement), text, count=1)
    if not count or changed == text or len(text) == LONGEST:
        return False
    with files.replacing(os.fsdecode(path)) as out:
        os.fchmod(out.fileno(), mode)
        out.write(changed)
    return True
