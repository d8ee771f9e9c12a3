"""Code inside a program that makes interrupted calls again, on whatever kernel the tests run.

The program is made of C, and has the function that all calls of a Go program go through.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_k3s_sandbox.layers.interceptor.repeating import ADDRESS, FUNCTION
from support.interceptor_tools import compiled, redirect, run, stats

pytestmark = pytest.mark.k3s_requires("ptrace")

BYTES = ", ".join(f"{byte:#x}" for byte in FUNCTION)

PROGRAM = f"""
    #include <fcntl.h>
    #include <signal.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/wait.h>
    #include <unistd.h>

    asm(".globl function\\n function: .byte {BYTES}\\n ret\\n nop\\n");

    static long go(long number, long a, long b, long c, long d) {{
        asm volatile("call function" : "+a"(number), "+b"(a), "+c"(b), "+D"(c), "+S"(d)
                     : : "rdx", "r10", "r11", "r12", "memory", "cc");
        return number;
    }}

    static volatile int got;
    static void handler(int signum) {{ got++; }}

    int main(int argc, char **argv) {{
        struct sigaction action = {{ .sa_handler = handler }};  /* without SA_RESTART */
        sigaction(SIGUSR1, &action, NULL);
        pid_t child = fork();
        if (child == 0) {{
            usleep(300000);
            kill(getppid(), SIGUSR1);
            usleep(300000);
            int fd = open(argv[1], O_WRONLY | O_NONBLOCK);
            _exit(fd < 0);
        }}
        printf("%ld\\n", go(257, AT_FDCWD, (long)argv[1], O_RDONLY, 0) < 0 ? -1L : 0L);
        printf("%d\\n", got);
        wait(NULL);
        FILE *maps = fopen("/proc/self/maps", "r");
        char line[512];
        while (fgets(line, sizeof line, maps))
            if (strncmp(line, "{ADDRESS:x}-", 13) == 0)
                printf("%.4s\\n", strchr(line, ' ') + 1);
        return 0;
    }}
"""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("options", [(), ("-static",), ("-static-pie",)])
def test_an_interrupted_call_is_made_again_in_a_page_that_nothing_can_write(
    options: tuple[str, ...], fifo: Path, tmp_path: Path
) -> None:
    program = compiled(PROGRAM, tmp_path, "-mno-red-zone", *options)
    for where, seen in (("", ["-1", "1"]), ("exits", ["0", "1", "r-xp"])):
        rules = '[[retry]]\nunder = "/elsewhere"\n' + ('exits = ["openat"]\n' if where else "")
        done = run(rules, tmp_path, str(program), str(fifo))
        assert (done.stdout.split(), done.stderr) == (seen, "")


@pytest.mark.parametrize("exits", [False, True])
def test_an_interrupted_call_that_no_rule_concerns_is_made_again_without_a_stop(
    exits: bool, fifo: Path, tmp_path: Path
) -> None:
    program = compiled(PROGRAM, tmp_path, "-mno-red-zone", "-static")
    under = "/elsewhere" if exits else tmp_path
    rules = f'[[retry]]\nunder = "{under}"\n' + 'exits = ["openat"]\n' * exits + redirect("/from", "/to")
    done = run(rules, tmp_path, str(program), str(fifo))
    assert (done.stdout.split(), done.stderr) == (["0", "1", "r-xp"], "")
    counted = stats(tmp_path)
    assert counted["calls"] == {"openat": 2}  # those of the C library
    assert counted["restarted"] == (not exits)  # where the signal is delivered


def test_a_program_sees_that_a_rule_lets_its_call_be_interrupted(fifo: Path, tmp_path: Path) -> None:
    rules = f'[[retry]]\nunder = "{tmp_path}"\ncalls = ["open"]\nexits = ["openat"]\n'
    rules += f'[[fault]]\npath = "{fifo}"\nerrno = "{errno.errorcode[errno.EINTR]}"\ntimes = 2\n'
    program = compiled(PROGRAM, tmp_path, "-mno-red-zone")
    done = run(rules, tmp_path, str(program), str(fifo))
    assert done.stdout.split()[0] == "-1"
    assert stats(tmp_path)["applied"][f"fault {errno.EINTR} {fifo}"] == 2


TAKEN = f"""
    .globl _start
    .text
    _start:
        xor %edi, %edi
        cmpb $0x49, function(%rip)
        setne %dil
        mov $231, %eax
        syscall
    function:
        .byte {BYTES}
        ret
        nop
"""


def test_a_program_that_lies_where_the_page_would_runs_as_it_is(tmp_path: Path) -> None:
    where = f"-Wl,-Ttext-segment={ADDRESS:#x}"
    program = compiled(TAKEN, tmp_path, "-nostdlib", "-static", where)
    rules = '[[retry]]\nunder = "/elsewhere"\nexits = ["openat"]\n'
    done = run(rules, tmp_path, str(program))
    assert (done.returncode, done.stderr) == (0, "")
