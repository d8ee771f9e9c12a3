"""Rules for some programs only, and calls that a signal interrupted, on whatever kernel the tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from support.interceptor_tools import compiled, python, redirect, run, stats

pytestmark = pytest.mark.k3s_requires("ptrace")

CAT = 'programs = ["cat"]\n'


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("real\n")
    target.write_text("other\n")
    return source, target


def test_a_rule_is_for_the_programs_that_it_names(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = files
    script = f"cat {source}; head {source}; exec cat {source}"
    done = run(redirect(source, target) + CAT, tmp_path, "sh", "-c", script)
    assert (done.stdout, done.stderr) == ("other\nreal\nother\n", "")
    counted = stats(tmp_path)
    assert counted["filters"] == 2
    assert counted["applied"] == {f"redirect {source}": 2}


def test_other_programs_do_not_stop(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = files
    done = run(redirect(source, target) + CAT, tmp_path, "sh", "-c", f"head {source}; tail {source}")
    assert done.stdout == "real\nreal\n"
    assert stats(tmp_path)["stops"].get("seccomp", 0) == 0


def test_a_filter_is_loaded_once_also_where_a_program_executes_itself(tmp_path: Path) -> None:
    status = Path("/proc/self/status").read_text()
    if "Seccomp_filters:" not in status:
        pytest.skip("the kernel does not tell how many filters a process has: Linux 5.10 does")
    own = int(status.partition("Seccomp_filters:")[2].split()[0])
    rules = redirect(tmp_path, tmp_path) + 'programs = ["sh", "dash"]\n'
    inner = "grep Seccomp_filters: /proc/self/status"
    done = run(rules, tmp_path, "sh", "-c", f"sh -c 'exec sh -c \"{inner}; true\"; true'; true")
    assert (done.stdout.split(), done.stderr) == (["Seccomp_filters:", str(own + 1)], "")
    assert stats(tmp_path)["filters"] == 1
    # Who executes nothing that a rule names gets none at all.
    assert run(rules, tmp_path, *inner.split()).stdout.split()[1] == str(own)


def test_what_a_named_program_executes_has_other_rules(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = files
    rules = redirect(source, target) + 'programs = ["sh", "dash"]\n'
    done = run(rules, tmp_path, "sh", "-c", f"read x < {source}; echo $x; cat {source}; exec head {source}")
    assert (done.stdout, done.stderr) == ("other\nreal\nreal\n", "")


def test_a_program_is_also_known_by_what_it_was_called(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = files
    (tmp_path / "kitten").symlink_to(shutil.which("cat") or "")
    rules = redirect(source, target) + 'programs = ["kitten"]\n'
    done = run(rules, tmp_path, "sh", "-c", f"{tmp_path}/kitten {source}; cat {source}")
    assert done.stdout == "other\nreal\n"


def test_rules_for_all_and_for_some_add_up(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = files
    folder = tmp_path / "folder"
    folder.mkdir()
    rules = redirect(source, target) + f'[[fault]]\npath = "{folder}"\nerrno = "EIO"\ncalls = ["stat"]\n'
    rules += 'programs = ["stat"]\n'
    done = run(rules, tmp_path, "sh", "-c", f"cat {source}; stat {folder}; ls -d {folder}; stat {source}")
    assert done.stdout.splitlines()[:2] == ["other", str(folder)]
    assert done.stderr.count("Input/output error") == 1


def test_a_program_started_by_a_thread_that_is_not_the_leader(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    source, target = files
    program = python(
        f"""
        import os, threading, time
        for _ in range(3): threading.Thread(target=time.sleep, args=(60,)).start()
        threading.Thread(target=os.execvp, args=("cat", ["cat", {str(source)!r}])).start()
        time.sleep(60)
        """
    )
    done = run(redirect(source, target) + CAT, tmp_path, *program)
    assert (done.stdout, done.returncode) == ("other\n", 0)


START = """
    .globl _start
    _start:
        mov %rsp, %rbx
        or %rbp, %rax
        or %rcx, %rax
        or %rdx, %rax
        or %rdi, %rax
        or %rsi, %rax
        or %r8, %rax
        or %r9, %rax
        or %r10, %rax
        or %r11, %rax
        setnz %dil
        movzx %dil, %edi
        mov $231, %eax
        syscall
"""


def test_the_program_starts_as_if_nothing_had_been_loaded(tmp_path: Path) -> None:
    # The registers at a program's first instruction are its stack pointer and zeros: the x86-64 psABI, 3.4.1.
    program = compiled(START, tmp_path, "-nostdlib", "-static")
    plain = subprocess.run([str(program)], check=False).returncode
    rules = redirect("/a", "/b") + 'programs = ["program"]\n'
    assert run(rules, tmp_path, str(program)).returncode == plain
    assert stats(tmp_path)["filters"] == 1


def test_content_and_patterns(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("real\n")
    rules = f'[[redirect]]\npattern = "{tmp_path}/*.txt"\ncontent = "made\\n"\n'
    done = run(rules, tmp_path, "sh", "-c", f"cat {tmp_path}/a.txt {tmp_path}/b.txt /etc/hostname")
    assert done.stdout == "made\nmade\n" + Path("/etc/hostname").read_text()


def test_faults_come_when_they_are_due(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    rules = f'[[fault]]\nprefix = "{tmp_path}"\nerrno = "EIO"\nskip = 1\ntimes = 2\n'
    rules += 'calls = ["open", "change", "statfs"]\n'
    program = python(
        f"""
        import ctypes, os
        for step in (lambda: os.open({str(file)!r}, 0), lambda: os.open({str(file)!r}, 0),
                     lambda: os.mkdir({str(tmp_path / "new")!r}), lambda: os.statvfs({str(file)!r})):
            try: step(); print("done")
            except OSError as error: print(error.errno)
        print(os.path.exists({str(tmp_path / "new")!r}))
        """
    )
    done = run(rules, tmp_path, *program)
    assert done.stdout.split() == ["done", "5", "5", "done", "False"]


def test_a_redirected_descriptor_keeps_its_name(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = files
    rules = redirect(source, target) + 'calls = ["open", "readlink"]\n'
    program = python(
        f"""
        import os
        fd = os.open({str(source)!r}, 0)
        print(os.read(fd, 99).decode().strip(), os.readlink(f"/proc/self/fd/{{fd}}"))
        folder = os.open("/proc/self/fd", os.O_DIRECTORY)
        print(os.readlink(str(fd), dir_fd=folder))
        """
    )
    assert run(rules, tmp_path, *program).stdout.split() == ["other", str(source), str(source)]


# Calls that a signal interrupted. A FIFO without a writer blocks in open, and a signal ends that.

INTERRUPTED = """
    import os, signal, threading, time
    fifo = {fifo!r}
    got = []
    signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    signal.siginterrupt(signal.SIGUSR1, True)
    main = threading.get_ident()
    def later():
        time.sleep(0.3)
        signal.pthread_kill(main, signal.SIGUSR1)
        time.sleep(0.3)
        os.close(os.open(fifo, os.O_WRONLY))
    threading.Thread(target=later).start()
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    fd = libc.open(fifo.encode(), 0)
    print(fd >= 0, __import__("ctypes").get_errno())
    if fd < 0: os.close(os.open(fifo, os.O_RDONLY))
"""


@pytest.mark.parametrize(("under", "answer"), [("", "True 0"), ("/elsewhere", "False 4")])
def test_an_interrupted_open_is_made_again_where_a_rule_says_so(
    under: str, answer: str, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    rules = f'[[retry]]\nunder = "{tmp_path}{under}"\n'
    done = run(rules, tmp_path, *python(INTERRUPTED.format(fifo=str(fifo))))
    assert (done.stdout.strip(), done.stderr) == (answer, "")
    counted = stats(tmp_path)
    assert counted["trapped"] == []
    assert counted["restarted"] == (answer == "True 0")


def test_signals_are_blocked_for_the_closing_of_what_was_opened_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    program = python(
        f"""
        import os, signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        for _ in range(50):
            for path in ({str(file)!r}, "/etc/hostname"):
                fd = os.open(path, 0)
                other = os.dup(fd)
                os.close(fd)
                os.close(other)
        try: os.close(fd)
        except OSError as error: print(error.errno)
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []) == before)
        """
    )
    done = run(f'[[mask]]\nunder = "{tmp_path}"\ncalls = ["close"]\n', tmp_path, *program)
    assert done.stdout == "9\nTrue\n"
    assert stats(tmp_path)["applied"] == {f"mask {tmp_path}": 100}


# Many of everything.


def test_a_thousand_threads(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = files
    program = python(
        f"""
        import threading
        threading.stack_size(65536)
        barrier, wrong = threading.Barrier(1001), []
        def work():
            barrier.wait()
            if open({str(source)!r}).read() != "other\\n": wrong.append(1)
        threads = [threading.Thread(target=work) for _ in range(1000)]
        for thread in threads: thread.start()
        barrier.wait()
        for thread in threads: thread.join()
        print(len(threads), wrong)
        """
    )
    done = run(redirect(source, target), tmp_path, *program)
    assert (done.stdout, done.stderr) == ("1000 []\n", "")
    assert stats(tmp_path)["applied"] == {f"redirect {source}": 1000}
    assert stats(tmp_path)["tracer_max_rss_kib"] <= 40 * 1024


def test_five_hundred_short_processes(tmp_path: Path) -> None:
    program = python(
        """
        import os
        done = 0
        for batch in range(50):
            pids = [os.posix_spawn("/bin/true", ["true"], {}) for _ in range(10)]
            done += sum(os.waitpid(pid, 0)[1] == 0 for pid in pids)
        print(done)
        """
    )
    began = time.monotonic()
    done = run('[[statfs]]\noriginal = 1\nreplacement = 2\nprograms = ["true"]\n', tmp_path, *program)
    assert (done.stdout, done.stderr) == ("500\n", "")
    assert stats(tmp_path)["filters"] == 500
    assert time.monotonic() - began < 20
