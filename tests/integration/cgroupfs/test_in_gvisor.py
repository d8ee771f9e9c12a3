"""What gVisor's own cgroups count and enforce comes through ours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from support.installed import installed

BEGIN = """
import json, os, subprocess, sys, time
ROOT = "/sys/fs/cgroup"
def read(path): return open(f"{ROOT}/{path}").read()
def write(path, text): open(f"{ROOT}/{path}", "w").write(str(text))
def run(code, *groups):
    # The process waits until it is in its groups.
    argv = [sys.executable, "-c", "input()\\n" + code]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for group in groups: write(f"{group}/cgroup.procs", child.pid)
    child.stdin.write("\\n"); child.stdin.flush()
    return child
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[GvisorSandbox]:
    """Give a sandbox with the layer in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    started = GvisorSandbox(installed("runsc").path)
    try:
        with FuseCgroupfs(started):
            yield started
        look = "mkdir /tmp/own; mount -t cgroup -o pids none /tmp/own; find /tmp/own -mindepth 1 -type d"
        assert started.run(["sh", "-c", look]).stdout == "", "groups are left in gVisor's own hierarchy"
    finally:
        started.close()


def inside(sandbox: GvisorSandbox, code: str) -> dict[str, object]:
    """Run a program that ends with ``found = {...}``."""
    argv = [sys.executable, "-I", "-S", "-c", f"{BEGIN}{code}\nprint(json.dumps(found))"]
    found: dict[str, object] = json.loads(sandbox.run(argv).stdout.splitlines()[-1])
    return found


def test_a_limit_of_processes_is_enforced(sandbox: GvisorSandbox) -> None:
    """A process is counted a moment after its fork, so that quick ones may exceed the limit by some."""
    code = """
os.mkdir(f"{ROOT}/pids/limited")
write("pids/limited/pids.max", 3)
more = '''
import os, time
count = 0
try:
    for _ in range(60):
        if os.fork() == 0: time.sleep(30)
        count += 1
        time.sleep(0.02)
except OSError: pass
print(count, flush=True)
time.sleep(30)
'''
child = run(more, "pids/limited")
forks = int(child.stdout.readline())
found = {"forks": forks, "current": int(read("pids/limited/pids.current"))}
found["max"] = read("pids/limited/pids.max")
found["listed"] = len(read("pids/limited/cgroup.procs").split())
write("pids/limited/pids.max", "max")
found["unlimited"] = read("pids/limited/pids.max")
for pid in read("pids/limited/cgroup.procs").split(): os.kill(int(pid), 9)
child.wait()
while read("pids/limited/cgroup.procs"): time.sleep(0.05)
os.rmdir(f"{ROOT}/pids/limited")
"""
    found = inside(sandbox, code)
    forks = found.pop("forks")
    assert isinstance(forks, int)
    assert 2 <= forks < 60, "every fork was let through"
    assert found == {"current": forks + 1, "listed": forks + 1, "max": "3\n", "unlimited": "max\n"}


def test_time_of_unsampled_children_is_counted(sandbox: GvisorSandbox) -> None:
    code = """
os.makedirs(f"{ROOT}/cpuacct/outer/inner")
burn = '''
import os, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        end = time.process_time() + 0.1
        while time.process_time() < end: pass
        os._exit(0)
    os.wait()
'''
run(burn, "cpuacct/outer/inner").wait()
time.sleep(1.2)
found = {}
for name in ("outer", "outer/inner"):
    found[name] = [int(word) for word in read(f"cpuacct/{name}/cpuacct.usage_percpu").split()]
again = int(read("cpuacct/outer/inner/cpuacct.usage"))
found["grown"] = again - sum(found["outer/inner"])
os.rmdir(f"{ROOT}/cpuacct/outer/inner")
os.rmdir(f"{ROOT}/cpuacct/outer")
"""
    found = inside(sandbox, code)
    for name in ("outer", "outer/inner"):
        usage = found[name]
        assert isinstance(usage, list)
        assert 400_000_000 <= sum(usage) <= 3_000_000_000
    assert found["grown"] == 0


def test_memory_follows_what_is_allocated(sandbox: GvisorSandbox) -> None:
    code = """
os.mkdir(f"{ROOT}/memory/user")
child = run("x = b'1' * (64 << 20)\\nprint(flush=True)\\ninput()", "memory/user")
child.stdout.readline()
time.sleep(1.2)
stat = dict(line.split() for line in read("memory/user/memory.stat").splitlines())
found = {"usage": int(read("memory/user/memory.usage_in_bytes"))}
found.update(rss=int(stat["rss"]), cache=int(stat["cache"]))
child.kill(); child.wait()
end = time.monotonic() + 30  # gVisor gives memory back in its own time
while int(read("memory/user/memory.usage_in_bytes")) > 8 << 20 and time.monotonic() < end: time.sleep(0.2)
found["after"] = int(read("memory/user/memory.usage_in_bytes"))
os.rmdir(f"{ROOT}/memory/user")
"""
    found = inside(sandbox, code)
    usage, after, rss, cache = (found[name] for name in ("usage", "after", "rss", "cache"))
    assert isinstance(usage, int)
    assert isinstance(after, int)
    assert isinstance(rss, int)
    assert isinstance(cache, int)
    assert usage >= 64 << 20
    assert usage <= 96 << 20
    assert rss + cache == usage
    assert after < 8 << 20


def test_a_process_says_where_it_is(sandbox: GvisorSandbox) -> None:
    code = """
for name in ("cpu", "pids", "memory"): os.makedirs(f"{ROOT}/{name}/pods/one")
child = run("input()", "cpu/pods/one", "pids/pods/one", "memory/pods/one")
lines = [line.split(":")[1:] for line in open(f"/proc/{child.pid}/cgroup").read().splitlines()]
found = {name: path for name, path in lines if name in ("cpu", "pids", "memory", "devices")}
os.rename(f"{ROOT}/pids/pods/one", f"{ROOT}/pids/pods/two")
found["renamed"] = read("pids/pods/two/cgroup.procs") == f"{child.pid}\\n"
child.kill(); child.wait()
for name in ("cpu", "memory"): os.rmdir(f"{ROOT}/{name}/pods/one"); os.rmdir(f"{ROOT}/{name}/pods")
os.rmdir(f"{ROOT}/pids/pods/two")
os.rmdir(f"{ROOT}/pids/pods")
"""
    where = "/pods/one"
    assert inside(sandbox, code) == {
        "cpu": where,
        "pids": where,
        "memory": where,
        "devices": "/",
        "renamed": True,
    }
