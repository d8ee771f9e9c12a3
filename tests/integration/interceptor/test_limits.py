"""What the interceptor does not do, where it cannot work, and what becomes of its program then."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_k3s_sandbox.layers.interceptor import filter as seccomp
from support.interceptor_tools import Popen, command, compiled, ends, python, redirect, run, stats

pytestmark = pytest.mark.k3s_requires("ptrace")

EPERM = 0x0005_0001
"""SECCOMP_RET_ERRNO with EPERM: linux/seccomp.h."""
PTRACE, PRCTL, SECCOMP = 101, 157, 317


def forbidding(*numbers: int) -> Callable[[], None]:
    """Return what makes a child unable to use some calls."""
    tests = [(0x15, len(numbers) - 1 - at, 0, number) for at, number in enumerate(numbers)]
    program = [
        (0x20, 0, 0, 0),
        *((code, taken + 1, missed, value) for code, taken, missed, value in tests),
        (0x06, 0, 0, seccomp.RET_ALLOW),
        (0x06, 0, 0, EPERM),
    ]
    packed = b"".join(struct.pack("=HBBI", *one) for one in program)
    return lambda: seccomp.load(packed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (PTRACE, "interceptor: ptrace: Operation not permitted\nRemedy: run as root, or allow it"),
        (SECCOMP, "interceptor: the seccomp filter: Operation not permitted\nRemedy: run as root"),
    ],
)
def test_a_missing_permission_is_one_error_and_2(call: int, message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        command("", tmp_path, "true"),
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=forbidding(call),
    )
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_a_freed_program_goes_on_and_only_its_trapped_calls_fail(popen: Popen, tmp_path: Path) -> None:
    program = python(
        """
        import os, sys
        print("ready", flush=True)
        sys.stdin.readline()
        try: os.open("/etc/passwd", 0)
        except OSError as error: print(error.errno)
        """
    )
    tracer = popen(
        command(redirect("/a", "/b"), tmp_path, *program, options=("--if-killed", "free")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tracer.stdin is not None
    assert tracer.stdout is not None
    assert tracer.stdout.readline() == "ready\n"
    tracer.kill()
    tracer.wait()
    tracer.stdin.write("\n")
    tracer.stdin.flush()
    assert tracer.stdout.read() == "38\n"  # ENOSYS: SECCOMP_RET_TRACE without a tracer, seccomp(2)


def test_a_stopped_program_is_not_left_stopped_by_its_tracer(popen: Popen, tmp_path: Path) -> None:
    script = "while :; do cat /etc/hostname; done > /dev/null & echo $!; wait"
    tracer = popen(
        command(redirect("/etc/hostname", "/etc/passwd"), tmp_path, "sh", "-c", script),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tracer.stdout is not None
    pid = int(tracer.stdout.readline())
    time.sleep(0.2)
    tracer.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    tracer.kill()
    tracer.wait()
    assert ends(pid)


def test_a_tracee_cannot_be_traced_by_another(tmp_path: Path) -> None:
    program = python(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.ptrace(0, 0, 0, 0), ctypes.get_errno())  # PTRACE_TRACEME
        """
    )
    assert run("", tmp_path, *program).stdout == "-1 1\n"


def test_calls_of_32_bit_and_x32_pass_unchanged(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_text("real")
    target.write_text("other")
    program = compiled(
        r"""
        #include <stdio.h>
        #include <string.h>
        #include <sys/mman.h>
        #include <unistd.h>
        #include <errno.h>
        #include <sys/syscall.h>
        int main(int argc, char **argv) {
            char *low = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0), text[9] = "";
            long fd = 5;
            strcpy(low, argv[1]);
            __asm__ volatile("int $0x80" : "+a"(fd) : "b"(low), "c"(0), "d"(0) : "memory");
            if (fd >= 0) { read(fd, text, 8); printf("%s\n", text); } else printf("errno %ld\n", -fd);
            fd = syscall(0x40000000 | 2, low, 0, 0);
            if (fd >= 0) { read(fd, text, 8); printf("%s\n", text); } else printf("errno %d\n", errno);
        }
        """,
        tmp_path,
    )
    try:
        plain = subprocess.run([str(program), str(source)], check=False, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"not applicable: the program does not run here ({error})")
    if plain.returncode < 0:
        pytest.skip("not applicable: the kernel has no 32-bit calls")
    done = run(redirect(source, target), tmp_path, str(program), str(source))
    assert (done.stdout, done.returncode) == (plain.stdout, plain.returncode)


def test_setuid_programs_keep_their_user(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    program = compiled("#include <unistd.h>\nint main() { return geteuid(); }\n", tmp_path)
    program.chmod(0o4755)
    tmp_path.chmod(0o755)
    argv = ("setpriv", "--reuid=65534", "--clear-groups", str(program))
    for folder in program.parents[:-2]:
        folder.chmod(0o755)
    plain = subprocess.run(argv, check=False).returncode
    if plain != 0:
        pytest.skip("not applicable: the kernel does not change the user, as gVisor does not by default")
    assert run("[[statfs]]\noriginal = 1\nreplacement = 2\n", tmp_path, *argv).returncode == 0


def test_vfork_shares_memory_until_exec(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_text("real")
    target.write_text("other")
    program = compiled(
        r"""
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/wait.h>
        #include <unistd.h>
        static volatile int fd;
        int main(int argc, char **argv) {
            for (int i = 0; i < 50; i++) {
                int status;
                pid_t pid = vfork();
                if (pid == 0) {
                    fd = open(argv[1], O_RDONLY);
                    dup2(fd, 9);
                    execlp("sh", "sh", "-c", "read x <&9; test \"$x\" = other", (char *)0);
                    _exit(9);
                }
                waitpid(pid, &status, 0);
                if (status) return 1 + i;
            }
            return 0;
        }
        """,
        tmp_path,
    )
    target.write_text("other\n")
    assert run(redirect(source, target), tmp_path, str(program), str(source)).returncode == 0
    assert stats(tmp_path)["applied"] == {f"redirect {source}": 50}


def test_debug_messages_say_why_a_path_is_left_alone(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.write_text("real")
    rules = redirect(source, "/no/such") + redirect("/proc/sys", "/x", "prefix")
    done = run(rules, tmp_path, "cat", str(source), "/etc/hostname", options=("--log-level", "debug"))
    assert f"cat {source}" not in done.stdout
    said = done.stderr.splitlines()
    assert any(line.endswith(f"{source}: redirect {source} to /no/such") for line in said)
    assert any(line.endswith("left alone: no such target") for line in said)
    assert any(line.endswith("openat /etc/hostname: no rule's path fits") for line in said)


def test_mountstats_are_rewritten(tmp_path: Path) -> None:
    if not Path("/proc/self/mountstats").exists():
        pytest.skip("not applicable: the kernel has no mountstats")
    rules = '[[mount]]\ntype="proc"\nnew_type="changed"\nsource="over here"\n'
    done = run(rules, tmp_path, "cat", "/proc/self/mountstats")
    assert "device over\\040here mounted on /proc with fstype changed" in done.stdout
