"""Processes, threads and signals under the interceptor, on whatever kernel the tests run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pytest_k3s_sandbox.toolchain import Toolchain, golang, pins
from support.interceptor_tools import MODULE, Popen, command, ends, python, redirect, run, stats

pytestmark = pytest.mark.k3s_requires("ptrace")


@pytest.mark.parametrize("code", [0, 1, 2, 126, 255])
def test_the_exit_code_passes_through(code: int, tmp_path: Path) -> None:
    assert run("", tmp_path, "sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGUSR1])
def test_the_ending_signal_passes_through(number: signal.Signals, tmp_path: Path) -> None:
    assert run("", tmp_path, "sh", "-c", f"kill -{int(number)} $$").returncode == -number


def test_a_missing_program_is_127_and_named(tmp_path: Path) -> None:
    done = run("", tmp_path, "/no/such/program")
    assert done.returncode == 127
    assert done.stderr == "interceptor: /no/such/program: No such file or directory\n"


def test_a_program_that_cannot_be_executed_is_126(tmp_path: Path) -> None:
    done = run("", tmp_path, str(tmp_path))
    assert done.returncode == 126
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_tracer_reaches_the_program_once(
    popen: Popen, number: signal.Signals, tmp_path: Path
) -> None:
    program = python(
        f"""
        import signal, time
        got = []
        signal.signal({int(number)}, lambda *_: got.append(1))
        print("ready", flush=True)
        end = time.monotonic() + 0.5
        while time.monotonic() < end: time.sleep(0.05)
        print(len(got))
        """
    )
    tracer = popen(command("", tmp_path, *program), stdout=subprocess.PIPE, text=True)
    assert tracer.stdout is not None
    assert tracer.stdout.readline() == "ready\n"
    tracer.send_signal(number)
    assert tracer.stdout.read() == "1\n"
    assert tracer.wait() == 0


def test_a_signal_to_the_whole_group_reaches_the_program_once(popen: Popen, tmp_path: Path) -> None:
    program = python(
        """
        import signal, time
        got = []
        signal.signal(signal.SIGTERM, lambda *_: got.append(1))
        print("ready", flush=True)
        end = time.monotonic() + 0.5
        while time.monotonic() < end: time.sleep(0.01)
        print(len(got))
        """
    )
    tracer = popen(command("", tmp_path, *program), stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert tracer.stdout is not None
    assert tracer.stdout.readline() == "ready\n"
    os.killpg(tracer.pid, signal.SIGTERM)
    assert tracer.stdout.read() == "1\n"
    assert tracer.wait() == 0


def test_killing_the_tracer_kills_its_tracees(popen: Popen, tmp_path: Path) -> None:
    tracer = popen(
        command("", tmp_path, "sh", "-c", "sleep 60 & echo $$ $!; wait"), stdout=subprocess.PIPE, text=True
    )
    assert tracer.stdout is not None
    pids = [int(word) for word in tracer.stdout.readline().split()]
    tracer.kill()
    tracer.wait()
    assert tracer.stdout.read() == ""  # ends when no process holds the pipe
    assert len(pids) == 2
    for pid in pids:
        assert ends(pid)


def test_daemons_are_served_after_the_program_has_ended(tmp_path: Path) -> None:
    source, target, out = tmp_path / "source", tmp_path / "target", tmp_path / "out"
    source.write_text("real")
    target.write_text("other")
    done = run(redirect(source, target), tmp_path, "sh", "-c", f"(sleep 0.3; cat {source} > {out}) & exit 7")
    assert done.returncode == 7
    assert out.read_text() == "other"


def test_exit_with_root_ends_daemons(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run("", tmp_path, "sh", "-c", "sleep 60 & exit 7", options=("--exit-with-root",))
    assert done.returncode == 7
    assert time.monotonic() - began < 30


def test_a_signal_after_the_programs_end_ends_the_tracer_and_its_daemons(
    popen: Popen, tmp_path: Path
) -> None:
    tracer = popen(
        command("", tmp_path, "sh", "-c", "sleep 60 & echo $! && exit 7"), stdout=subprocess.PIPE, text=True
    )
    assert tracer.stdout is not None
    daemon = int(tracer.stdout.readline())
    with pytest.raises(subprocess.TimeoutExpired):
        tracer.wait(0.5)
    tracer.terminate()
    assert tracer.wait(10) == 7
    assert ends(daemon)
    assert not list(tmp_path.glob("k3s-interceptor-*"))


# Processes and threads.


def test_many_threads_and_children_all_see_the_rules(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("real")
    target.write_text("other")
    done = run(
        redirect(source, target),
        tmp_path,
        *python(
            f"""
            import subprocess, threading
            wrong = []
            def work(n):
                for i in range(40):
                    with open({str(source)!r}) as file:
                        if file.read() != "other": wrong.append(n)
                    with open("/etc/passwd") as file:
                        if not file.read(): wrong.append(n)
                out = subprocess.run(["cat", {str(source)!r}], capture_output=True, text=True).stdout
                if out != "other": wrong.append(out)
            threads = [threading.Thread(target=work, args=(n,)) for n in range(40)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            print(wrong)
            """
        ),
    )
    assert done.stdout == "[]\n"
    assert done.returncode == 0
    assert stats(tmp_path)["applied"] == {f"redirect {source}": 40 * 41}


def test_a_storm_of_forks(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("real")
    target.write_text("other")
    done = run(
        redirect(source, target),
        tmp_path,
        *python(
            f"""
            import os
            def child(i):
                if i % 3 == 0: os.execvp("true", ["true"])
                if i % 3 == 1: os._exit(0 if open({str(source)!r}).read() == "other" else 1)
                os.kill(os.getpid(), 9)
            for batch in range(10):
                pids = []
                for i in range(30):
                    pid = os.fork()
                    if pid == 0: child(i)
                    pids.append((i, pid))
                for i, pid in pids:
                    status = os.waitpid(pid, 0)[1]
                    assert status == (9 if i % 3 == 2 else 0), (i, status)
            print("done")
            """
        ),
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_exec_by_a_thread_that_is_not_the_leader(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("real")
    target.write_text("other")
    done = run(
        redirect(source, target),
        tmp_path,
        *python(
            f"""
            import os, threading, time
            open({str(source)!r})
            for _ in range(5): threading.Thread(target=time.sleep, args=(60,)).start()
            threading.Thread(target=os.execvp, args=("cat", ["cat", {str(source)!r}])).start()
            time.sleep(60)
            """
        ),
    )
    assert (done.stdout, done.returncode) == ("other", 0)


def test_stop_and_continue(tmp_path: Path) -> None:
    done = run(
        "",
        tmp_path,
        *python(
            """
            import os, signal, time
            pid = os.fork()
            if pid == 0:
                time.sleep(0.3)
                os._exit(5)
            os.kill(pid, signal.SIGSTOP)
            got, status = os.waitpid(pid, os.WUNTRACED)
            print(os.WIFSTOPPED(status), os.WSTOPSIG(status) == signal.SIGSTOP)
            time.sleep(0.4)
            print(os.waitpid(pid, os.WNOHANG))  # it did not run on
            os.kill(pid, signal.SIGCONT)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            """
        ),
    )
    assert done.stdout.splitlines() == ["True True", "(0, 0)", "5"]


def test_signals_arrive_unchanged_while_calls_are_trapped(tmp_path: Path) -> None:
    done = run(
        redirect("/etc/passwd", "/etc/hostname"),
        tmp_path,
        *python(
            """
            import os, signal
            got = []
            for number in (10, 12, 14, 17, 5, signal.SIGRTMIN):
                signal.signal(number, lambda n, _: got.append(n))
                for _ in range(20):
                    os.kill(os.getpid(), number)
                    open("/etc/passwd").close()
            print(len(got), sorted({int(n) for n in got}))
            """
        ),
    )
    assert done.stdout == f"120 [5, 10, 12, 14, 17, {int(signal.SIGRTMIN)}]\n"


def test_an_interval_timer_interrupts_no_masked_call(tmp_path: Path) -> None:
    done = run(
        f'[[mask]]\nunder="{tmp_path}"\n',
        tmp_path,
        *python(
            f"""
            import os, signal
            got = []
            signal.signal(signal.SIGALRM, lambda *_: got.append(1))
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            for i in range(300):
                os.mkdir({str(tmp_path)!r} + "/d")
                os.close(os.open({str(tmp_path)!r} + "/d", os.O_DIRECTORY))
                os.rmdir({str(tmp_path)!r} + "/d")
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(bool(got), signal.pthread_sigmask(signal.SIG_BLOCK, []) == before)
            """
        ),
    )
    assert (done.stdout, done.stderr) == ("True True\n", "")
    assert stats(tmp_path)["applied"] == {f"mask {tmp_path}": 900}


def test_a_go_program_with_many_goroutines(tmp_path: Path) -> None:
    go = golang.find_go(pins.load().go, (1, 21), Toolchain().cache, os.environ)
    if go is None:
        pytest.skip("no Go toolchain on this machine: run `k3s-sandbox provision`")
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("real")
    target.write_text("other")
    (tmp_path / "go.mod").write_text("module probe\ngo 1.21\n")
    (tmp_path / "main.go").write_text(
        textwrap.dedent(
            """
            package main
            import ("os"; "os/exec"; "runtime"; "sync"; "fmt")
            func main() {
                var group sync.WaitGroup
                for g := 0; g < 30; g++ {
                    group.Add(1)
                    go func() {
                        defer group.Done()
                        runtime.LockOSThread()
                        for i := 0; i < 100; i++ {
                            text, err := os.ReadFile(os.Args[1])
                            if err != nil || string(text) != "other" { fmt.Println(err, string(text)) }
                            if i % 10 == 0 { runtime.GC() }
                        }
                        text, err := exec.Command("cat", os.Args[1]).Output()
                        if err != nil || string(text) != "other" { fmt.Println(err, string(text)) }
                    }()
                }
                group.Wait()
            }
            """
        )
    )
    subprocess.run(
        [str(go.path), "build", "-o", "probe", "."],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "CGO_ENABLED": "0"},
    )
    done = run(redirect(source, target), tmp_path, str(tmp_path / "probe"), str(source))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


# Wrong input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "no-such"), "preset 'no-such': unknown"),
        (("--rules", "/no/such.toml"), "rule file /no/such.toml: No such file or directory"),
        (("--tree", "/no/such"), "tree /no/such: is not a folder"),
    ],
)
def test_wrong_input_is_2(options: tuple[str, ...], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", MODULE, *options, "--", "true"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_program_is_2() -> None:
    done = subprocess.run([sys.executable, "-m", MODULE], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no program to run" in done.stderr


def test_stats_on_demand(popen: Popen, tmp_path: Path) -> None:
    tracer = popen(
        command("[[statfs]]\noriginal=1\nreplacement=2\n", tmp_path, "sh", "-c", "echo; exec sleep 60"),
        stdout=subprocess.PIPE,
    )
    assert tracer.stdout is not None
    tracer.stdout.readline()
    tracer.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while not (tmp_path / "stats").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    counts = stats(tmp_path)
    tracer.terminate()
    assert tracer.wait() == -signal.SIGTERM
    tracer.stdout.close()
    assert counts["trapped"] == ["fstatfs", "statfs"]
    assert counts["tracer_cpu_seconds"] > 0
