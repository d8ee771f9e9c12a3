"""The shell script beside the plugin in Python: the same answers, and one record for both."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.layers.cni import layer
from pytest_k3s_sandbox.layers.cni.layer import NETWORK, plugin_config
from pytest_k3s_sandbox.layers.cni.plugin import answer
from pytest_k3s_sandbox.layers.cni.script import script
from support.cni import call, variables

SHELLS = {"busybox": "busybox sh", "sh": "sh", "bash": "bash"}


class Plugin:
    """The script in one folder, with a plugin in Python behind it that notes its calls."""

    def __init__(self, folder: Path, shell: str, subnet: str = "10.42.0.0/29") -> None:
        """Write it."""
        self.folder, self.state = folder, folder / "state"
        (self.state / NETWORK).mkdir(parents=True)
        self.config = plugin_config(subnet)
        self.config["ipam"]["dataDir"] = str(self.state)
        slow = folder / "slow path"
        slow.write_text(
            f"#!{sys.executable} -S\nimport os, sys\nsys.path.insert(0, {str(Path(__file__).parents[4])!r})\n"
            f"open({str(folder / 'calls')!r}, 'a').write('x')\n"
            "from pytest_k3s_sandbox.layers.cni.plugin import main\nsys.exit(main())\n"
        )
        slow.chmod(0o755)
        program, *words = SHELLS[shell].split()
        path = " ".join((shutil.which(program) or "", *words))
        state = str(self.state / NETWORK)
        self.program = folder / "plugin"
        self.program.write_text(script(shell=path, python=str(slow), config=self.config, state=state))
        self.program.chmod(0o755)

    @property
    def slow(self) -> int:
        """How often Python was started."""
        calls = self.folder / "calls"
        return len(calls.read_text()) if calls.exists() else 0

    def __call__(
        self, command: str, container: str = "pod-1", text: str | None = None, **environ: str
    ) -> tuple[int, Any]:
        """Run it as libcni does."""
        text = self.text() if text is None else text
        return call(self.program, text, variables(command, container) | environ)

    def text(self, **more: object) -> str:
        """Return the configuration as libcni writes it."""
        return json.dumps(self.config | more, sort_keys=True, separators=(",", ":"))

    def python(self, command: str, container: str = "pod-1", **more: object) -> tuple[int, Any]:
        """Ask the plugin in Python, which has the same record."""
        return answer(variables(command, container), json.dumps(self.config | more).encode())


@pytest.fixture(params=SHELLS)
def cni(request: pytest.FixtureRequest, tmp_path: Path) -> Plugin:
    if shutil.which(SHELLS[request.param].split()[0]) is None:
        pytest.skip(f"there is no {request.param}")
    return Plugin(tmp_path, request.param)


def test_its_answers_are_pythons(cni: Plugin, tmp_path: Path) -> None:
    other = Plugin(tmp_path / "other", "sh")
    for number in range(5):
        code, result = cni("ADD", f"pod-{number}")
        assert (code, result) == other.python("ADD", f"pod-{number}")
        assert cni.python("CHECK", f"pod-{number}", prevResult=result) == (0, None)
    assert cni.slow == 0
    assert cni("DEL", "pod-2", cni.text(prevResult=result)) == (0, None)
    assert cni("DEL", "pod-2") == (0, None)  # it is gone
    assert cni("ADD", "pod-9")[1]["ips"][0]["address"] == "10.42.0.4/29"  # the only one that is free
    assert cni.slow == 0


def test_an_address_is_given_out_again_as_late_as_possible(cni: Plugin) -> None:
    first = cni("ADD")[1]["ips"][0]["address"]
    cni("DEL")
    later = [cni("ADD", f"pod-{number}")[1]["ips"][0]["address"] for number in range(2, 7)]
    assert later.index(first) == 4
    assert cni.slow == 0


def test_python_names_what_is_wrong(cni: Plugin) -> None:
    for number in range(5):
        cni("ADD", f"pod-{number}")
    assert cni.slow == 0
    assert cni("ADD", "pod-1")[0] == 101
    assert cni("ADD", "one-more")[0] == 100
    assert not (cni.state / NETWORK / "one-more:eth0").exists()
    assert cni("ADD", "pod-1", text="{")[0] == 6
    assert cni("ADD", "pod-7", text=cni.text(cniVersion="0.4.0"))[0] == 1
    assert cni("ADD", "pod-7", CNI_NETNS="")[0] == 4
    assert cni("ADD", "-x")[0] == 4
    assert cni("ADD", "pod-7", CNI_IFNAME="a/b")[0] == 4
    assert cni("DEL", CNI_IFNAME="..")[0] == 4
    assert cni("SOMETHING")[0] == 4
    assert cni("STATUS")[0] == 50
    assert cni("VERSION")[0] == 0
    assert cni.slow == 11


def test_another_text_goes_to_python_whole(cni: Plugin) -> None:
    lines = json.dumps(cni.config, indent=1)
    code, result = cni("ADD", text=lines)
    assert (code, result["ips"][0]["address"]) == (0, "10.42.0.2/29")
    code, chained = cni("ADD", "pod-2", text=cni.text(prevResult={"dns": {"nameservers": ["1.1.1.1"]}}))
    assert (code, chained["dns"]) == (0, {"nameservers": ["1.1.1.1"]})
    assert cni.slow == 2
    assert cni("DEL", text=lines)[0] == 0
    assert cni.python("DEL", "pod-2") == (0, None)
    assert cni.python("STATUS") == (0, None)


def test_an_attachment_without_an_address_is_deleted(cni: Plugin) -> None:
    (cni.state / NETWORK / "pod-1:eth0").touch()  # the plugin was killed
    assert cni("DEL") == (0, None)
    assert not (cni.state / NETWORK / "pod-1:eth0").exists()


def test_the_address_of_another_stays(cni: Plugin) -> None:
    """A DEL that was killed half way is repeated when the address has another holder."""
    cni("ADD")
    (cni.state / NETWORK / "pod-0:eth0").write_text("10.42.0.2\n")
    assert cni("DEL", "pod-0") == (0, None)
    assert (cni.state / NETWORK / "10.42.0.2").read_text() == "pod-1 eth0\n"


def test_plugins_side_by_side_share_no_address(tmp_path: Path) -> None:
    cni = Plugin(tmp_path, "sh", "10.42.0.0/26")

    def add(number: int) -> tuple[int, Any]:
        return cni.python("ADD", f"pod-{number}") if number % 4 == 0 else cni("ADD", f"pod-{number}")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(add, range(48)))
    assert [code for code, _ in answers] == [0] * 48
    assert len({result["ips"][0]["address"] for _, result in answers}) == 48
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cni("DEL", f"pod-{number}"), range(48)))
    assert sorted(path.name for path in (cni.state / NETWORK).iterdir()) == ["last", "lock"]


def test_the_layer_takes_busybox_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: "/opt/busybox")
    assert layer._shell() == "/opt/busybox sh"
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert layer._shell() == "/bin/sh"
