"""What is read from procfs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.cgroupfs.accounting import (
    ProcAccounting,
    parse_cpu,
    parse_meminfo,
    parse_stat,
)
from pytest_k3s_sandbox.layers.cgroupfs.sample import Process
from support.waiting import until

# Of a gVisor sandbox, release-20260905.
GVISOR_STAT = (
    "45 (cat) R 1 1 7 0 0 0 5 0 6 0 1 2 3 4 20 0 2 0 251 11247616 1209 18446744073709551615"
    + " 0" * 12
    + " 17 1 0 0 0 0 0 0 0 0 0 0 0 0\n"
)


def test_stat_of_a_process() -> None:
    process = parse_stat(GVISOR_STAT)
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert (process.pid, process.state, process.parent, process.session) == (45, "R", 1, 7)
    assert (process.faults, process.major_faults) == (5, 6)
    assert (process.user, process.system) == (tick, 2 * tick)
    assert (process.reaped_user, process.reaped_system) == (3 * tick, 4 * tick)
    assert (process.threads, process.started, process.processor) == (2, 251, 1)
    assert process.anonymous == 1209 * os.sysconf("SC_PAGE_SIZE")


@given(st.text(max_size=15))
def test_names_cannot_confuse_the_parser(name: str) -> None:
    assert parse_stat(GVISOR_STAT.replace("(cat)", f"({name})")) == parse_stat(GVISOR_STAT)


def test_cpu_times() -> None:
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    text = "cpu  9 9 9 9 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 0 0 0\ncpu3 8 0 0 0 0 0 0 0 0 0\nintr 5 0\n"
    assert parse_cpu(text) == {0: (3 * tick, 16 * tick), 3: (8 * tick, 0)}


def test_meminfo() -> None:
    text = "MemTotal:       24684096 kB\nActive(anon):  588 kB\nHugePages_Total:   7\n"
    assert parse_meminfo(text) == {
        "MemTotal": 24684096 * 1024,
        "Active(anon)": 588 * 1024,
        "HugePages_Total": 7,
    }


def proc(root: Path, pid: int, **changes: str) -> None:
    (root / str(pid)).mkdir(exist_ok=True)
    fields = GVISOR_STAT.split()
    fields[0] = str(pid)
    fields[2] = changes.get("state", "S")
    fields[13] = changes.get("user", "0")
    fields[19] = changes.get("threads", "2")
    (root / str(pid) / "stat").write_text(" ".join(fields))


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / "stat").write_text("cpu0 0 0 0 0 0 0 0\n")
    (tmp_path / "meminfo").write_text("MemTotal: 4 kB\n")
    proc(tmp_path, 1)
    proc(tmp_path, 2)
    return tmp_path


def test_numbers_have_a_bounded_age_but_processes_are_of_now(fake: Path) -> None:
    accounting = ProcAccounting(max_age=3600, proc=str(fake))
    first = accounting.sample()
    assert sorted(first.processes) == [1, 2]
    proc(fake, 1, user="50")
    proc(fake, 3)
    assert accounting.sample() is first
    census = accounting.census()
    assert sorted(census.processes) == [1, 2, 3]
    assert census.processes[1].user == 0
    assert accounting.census([1]).processes[1].user > 0
    proc(fake, 2, state="Z", threads="1")
    assert sorted(accounting.census([2]).processes) == [1, 3]


def test_an_unchanged_census_is_the_same_sample(fake: Path) -> None:
    accounting = ProcAccounting(max_age=3600, proc=str(fake))
    assert accounting.census() is accounting.sample()


def test_without_max_age_each_sample_is_new(fake: Path) -> None:
    accounting = ProcAccounting(max_age=0, proc=str(fake))
    first = accounting.sample()
    proc(fake, 1, user="50")
    assert accounting.sample().processes[1].user > first.processes[1].user


def test_processes_that_vanish_or_make_no_sense_are_left_out(fake: Path) -> None:
    (fake / "7").mkdir()
    (fake / "8").mkdir()
    (fake / "8" / "stat").write_text("8 (x) S")
    assert sorted(ProcAccounting(proc=str(fake)).sample().processes) == [1, 2]


def test_this_machine() -> None:
    accounting = ProcAccounting(max_age=0)
    me = accounting.sample().processes[os.getpid()]
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    now = accounting.sample().processes[os.getpid()]
    assert now.user + now.system > me.user + me.system
    assert me.anonymous + me.mapped > 1 << 20
    assert accounting.thread_group(os.getpid()) == os.getpid()
    assert os.getpid() in accounting.threads(os.getpid())
    assert accounting.thread_group(2**30) is None
    assert accounting.threads(2**30) == []
    assert len(accounting.cpus) == os.cpu_count()
    assert 0 in accounting.mems


def test_freezing_stops_another_process_but_never_this_one() -> None:
    accounting = ProcAccounting(max_age=0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        accounting.freeze(child.pid, frozen=True)
        end = time.monotonic() + 5
        while accounting.sample().processes[child.pid].state != "T":
            assert time.monotonic() < end
        accounting.freeze(child.pid, frozen=False)
        while accounting.sample().processes[child.pid].state == "T":
            assert time.monotonic() < end
        child.kill()
    accounting.freeze(child.pid, frozen=True)
    accounting.freeze(os.getpid(), frozen=True)


def spent(process: Process) -> int:
    return process.user + process.system


def test_a_thread_that_is_apart_takes_its_time_out_of_its_process() -> None:
    accounting = ProcAccounting(max_age=0)
    begun, stop = threading.Event(), threading.Event()
    tids: list[int] = []

    def burn() -> None:
        tids.append(threading.get_native_id())
        begun.wait()
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        stop.wait()

    thread = threading.Thread(target=burn)
    thread.start()
    while not tids:
        time.sleep(0.001)
    me = os.getpid()
    whole = accounting.sample().processes[me]
    accounting.set_apart([*tids, 2**30])
    before = accounting.sample()
    assert before.apart == frozenset(tids)
    assert before.processes[tids[0]].process == me
    assert before.processes[tids[0]].user == 0
    assert before.processes[me].threads == whole.threads - 1
    begun.set()
    end = time.monotonic() + 10
    while spent(accounting.sample().processes[tids[0]]) < 150_000_000:
        assert time.monotonic() < end
    now = accounting.sample()
    stop.set()
    thread.join()  # returns before the kernel's thread has ended
    until(lambda: not Path(f"/proc/self/task/{tids[0]}").exists())
    after = accounting.census([me])
    assert after.apart == frozenset()
    assert tids[0] not in after.processes
    apart = spent(now.processes[tids[0]])
    assert spent(after.processes[me]) < spent(now.processes[me]) + apart, "it was given back"
    assert after.processes[me].threads == whole.threads - 1


def test_without_a_fork_the_list_is_not_read_again(fake: Path) -> None:
    (fake / "loadavg").write_text("0.00 0.00 0.00 1/9 77\n")
    accounting = ProcAccounting(max_age=3600, proc=str(fake))
    first = accounting.census()
    proc(fake, 3)
    assert accounting.census() is first
    assert 3 in accounting.census(ended=True).processes
    proc(fake, 4)
    assert 4 not in accounting.census().processes
    (fake / "loadavg").write_text("0.00 0.00 0.00 1/9 78\n")
    assert 4 in accounting.census().processes
    proc(fake, 5)
    (fake / "loadavg").write_text("0.00 0.00 0.00 1/9 79\n")
    assert 5 not in accounting.census([4], started=False).processes
    assert 5 in accounting.census([5], started=False).processes


def test_a_slow_sample_is_good_for_longer(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    accounting = ProcAccounting(max_age=1, proc=str(fake))
    read = accounting._pids

    def slow() -> list[int]:
        now[0] += 0.1
        return read()

    monkeypatch.setattr(accounting, "_pids", slow)
    first = accounting.sample()
    now[0] += 2.9
    assert accounting.sample() is first
    now[0] += 0.2
    assert accounting.sample() is not first


def test_a_release_agent_gets_the_path_and_the_kernels_environment(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_text(
        f"#!/bin/sh\necho $1 $HOME $(pwd) > {tmp_path}/new && mv {tmp_path}/new {tmp_path}/said\n"
    )
    agent.chmod(0o755)
    accounting = ProcAccounting()
    accounting.release(str(agent), "/a/b")
    accounting.release(str(tmp_path / "nothing"), "/a/b")
    end = time.monotonic() + 10
    while not (tmp_path / "said").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert (tmp_path / "said").read_text() == "/a/b / /\n"
    for process in accounting._agents:
        process.wait()


def test_facts_of_this_machine() -> None:
    accounting = ProcAccounting()
    assert accounting.may_move(os.getpid(), os.getpid())
    assert accounting.setting("vm/swappiness") is None or accounting.setting("vm/swappiness") in range(201)
    assert accounting.setting("no/thing") is None
    assert "lo" in accounting.interfaces()
    assert not accounting.disk("4095:1")
    assert accounting.limits[0] >= len(accounting.cpus)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert "eventfd" in (accounting.opened(os.getpid(), event) or "")
        assert accounting.opened(os.getpid(), 999) is None
        assert accounting.signaller(2**22, event) is None
        signal_it = accounting.signaller(os.getpid(), event)
        if signal_it is not None:  # an old kernel has no pidfd_getfd
            signal_it()
            assert os.eventfd_read(event) == 1
    finally:
        os.close(event)
