"""The process that keeps the rules, with programs that stand in for iptables and ip."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.layers import ownprogram
from pytest_k3s_sandbox.layers.services import layer
from pytest_k3s_sandbox.layers.services.__main__ import BETWEEN
from support.nat import Nat, Packet
from support.stub_api import SERVICES, SLICES, StubApi, endpoint_slice, service
from support.waiting import until

RESTORE = """#!/bin/sh
test -e {home}/refuse && {{ echo refused >&2; exit 1; }}
number=$(cat {home}/number 2>/dev/null || echo 1000)
cat >{home}/text-$number.partial
mv {home}/text-$number.partial {home}/text-$number
echo $((number + 1)) >{home}/number
"""
SAVE = "#!/bin/sh\ncat {home}/saved\n"
IP = "#!/bin/sh\ncat >>{home}/ip\n"


class Running:
    """The process, and what it has given to iptables."""

    def __init__(
        self,
        home: Path,
        kubeconfig: str,
        saved: str = "*nat\nCOMMIT\n",
        capacity: int | None = 32768,
    ) -> None:
        """Start it where iptables-save prints a text."""
        self.home = home
        (home / "bin").mkdir()
        (home / "saved").write_text(saved)
        programs = {"iptables-legacy-restore": RESTORE, "iptables-legacy-save": SAVE, "ip": IP}
        for name, text in programs.items():
            (home / "bin" / name).write_text(text.format(home=home))
            (home / "bin" / name).chmod(0o755)
        settings = {
            "kubeconfig": kubeconfig,
            "status": str(home / "status.json"),
            "node": "here",
            "address": "10.213.0.2",
            "gateway": "10.42.0.1",
            "service": "10.43.0.1/16",
            "capacity": capacity,
        }
        argv = layer.command(settings)
        environ = {**os.environ, "PATH": f"{home}/bin:{os.environ['PATH']}"}
        self.process = subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True)
        until(lambda: (home / "status.json").exists() or self.process.poll() is not None)

    @property
    def said(self) -> dict[str, Any]:
        """The status."""
        found: dict[str, Any] = json.loads((self.home / "status.json").read_text())
        return found

    @property
    def texts(self) -> list[str]:
        """What iptables-restore has read, in order."""
        return [path.read_text() for path in sorted(self.home.glob("text-????"))]

    @property
    def nat(self) -> Nat:
        """The table after all of it."""
        made = Nat()
        for text in self.texts:
            made.restore(text)
        return made

    def leads(self, address: str = "10.43.7.7") -> str | None:
        """Return what the table leads a connection to port 80 to."""
        return self.nat.led_to(Packet("10.42.0.9", 40000, address, 80))


@pytest.fixture
def api() -> Iterator[StubApi]:
    with StubApi() as made:
        made.put(SERVICES, service())
        made.put(SLICES, endpoint_slice("10.42.0.5"))
        yield made


@pytest.fixture
def running(api: StubApi, tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path, api.write_kubeconfig(tmp_path))
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.communicate()


def test_it_writes_what_the_api_server_has_and_removes_it_at_its_end(api: StubApi, running: Running) -> None:
    until(lambda: running.said["synced"])
    assert running.leads() == "10.42.0.5:8080"
    said = running.said
    assert (said["services"], said["slices"], said["ports"], said["error"]) == (1, 1, 1, "")
    assert said["pid"] == running.process.pid
    assert abs(said["time"] - time.time()) < 60
    until(api.watched)
    api.put(SLICES, endpoint_slice("10.42.0.6"))
    until(lambda: running.leads() == "10.42.0.6:8080")
    (running.home / "saved").write_text(running.nat.save())
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    assert running.nat.save() == Nat().save()
    added, removed = (running.home / "ip").read_text().splitlines()[::2]
    assert added == "address replace 10.43.0.1/16 dev lo"
    assert removed == "address del 10.43.0.1/16 dev lo"


def test_many_changes_share_a_table(api: StubApi, running: Running) -> None:
    until(lambda: running.said["synced"])
    until(api.watched)
    began = time.monotonic()
    for number in range(100):
        api.put(SLICES, endpoint_slice(f"10.42.0.{number + 2}"))
        time.sleep(0.005)
    until(lambda: running.leads() == "10.42.0.101:8080")
    assert len(running.texts) <= 3 + (time.monotonic() - began) / BETWEEN


def test_a_change_is_written_soon(api: StubApi, running: Running) -> None:
    until(lambda: running.said["synced"])
    until(api.watched)
    time.sleep(BETWEEN)
    began = time.monotonic()
    api.put(SLICES, endpoint_slice("10.42.0.6"))
    until(lambda: running.leads() == "10.42.0.6:8080")
    assert time.monotonic() - began < 1


def test_what_changes_no_rule_writes_nothing(api: StubApi, running: Running) -> None:
    until(lambda: running.said["synced"])
    until(api.watched)
    before = len(running.texts)
    api.put(SERVICES, service("headless", clusterIP="None", clusterIPs=["None"]))
    api.put(SLICES, endpoint_slice("10.42.0.5", service="other"))
    until(lambda: running.said["slices"] == 2)
    assert len(running.texts) == before


def test_a_table_that_is_refused_is_told_and_written_again(api: StubApi, running: Running) -> None:
    until(lambda: running.said["synced"])
    until(api.watched)
    (running.home / "refuse").touch()
    api.put(SLICES, endpoint_slice("10.42.0.6"))
    until(lambda: "refused" in running.said["error"])
    (running.home / "refuse").unlink()
    (running.home / "saved").write_text(running.nat.save())
    until(lambda: running.said["error"] == "")
    assert running.leads() == "10.42.0.6:8080"


def test_it_takes_over_what_an_earlier_one_has_left(api: StubApi, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = Running(tmp_path / "first", api.write_kubeconfig(tmp_path))
    until(lambda: first.said["synced"])
    first.process.kill()
    first.process.communicate()
    left = first.nat
    api.delete(SERVICES, "web")
    api.put(SERVICES, service("new", "10.43.7.9"))
    second = Running(tmp_path / "second", api.write_kubeconfig(tmp_path), left.save())
    try:
        until(lambda: second.said["synced"])
        for text in second.texts:
            left.restore(text)
        assert left.led_to(Packet("10.42.0.9", 40000, "10.43.7.7", 80)) is None
        assert left.led_to(Packet("10.42.0.9", 40000, "10.43.7.9", 80)) == "10.42.0.1:1"
    finally:
        second.process.kill()
        second.process.communicate()


def test_it_keeps_the_rules_while_the_api_server_is_away(tmp_path: Path) -> None:
    with StubApi() as api:
        api.put(SERVICES, service())
        running = Running(tmp_path, api.write_kubeconfig(tmp_path))
        until(lambda: running.said["synced"])
        until(api.watched)
    try:
        until(lambda: "ConnectionRefusedError" in running.said["api"])
        assert running.said["synced"]
        assert len(running.texts) == 1
    finally:
        running.process.kill()
        running.process.communicate()


def test_it_shares_by_chance_where_iptables_can(api: StubApi, tmp_path: Path) -> None:
    api.put(SLICES, endpoint_slice("10.42.0.5", "10.42.0.6"))
    for refused in (False, True):
        home = tmp_path / f"{refused}"
        home.mkdir()
        if refused:
            (home / "refuse").touch()
        running = Running(home, api.write_kubeconfig(tmp_path), capacity=None)
        try:
            (home / "refuse").unlink(missing_ok=True)
            until(lambda running=running: running.said["synced"])  # type: ignore[misc]  # a default binds it
            assert ("--probability 0.5000000000 -j DNAT" in running.texts[-1]) is not refused
        finally:
            running.process.kill()
            running.process.communicate()


def test_it_ends_where_there_is_no_iptables(tmp_path: Path) -> None:
    settings = dict.fromkeys(("kubeconfig", "status", "node", "address", "gateway", "service"), "x")
    argv = layer.command(settings)
    done = subprocess.run(
        argv, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 2
    assert "iptables-legacy-restore" in done.stderr


def test_it_imports_little() -> None:
    module = "pytest_k3s_sandbox.layers.services.__main__"
    code = f"import sys; sys.path.append({ownprogram._ROOT!r}); import {module}; print(*sys.modules)"
    argv = [*ownprogram.PYTHON, "-c", code]
    loaded = set(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.split())
    slow = {
        "argparse",
        "asyncio",
        "dataclasses",
        "http.client",
        "inspect",
        "ipaddress",
        "pathlib",
        "subprocess",
    }
    assert not loaded & (slow | {"urllib.request", "tempfile", "logging"})
