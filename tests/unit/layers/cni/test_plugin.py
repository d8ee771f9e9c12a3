"""The plugin's answers, by the sections of the CNI specification 1.1.0."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.cni import plugin
from pytest_k3s_sandbox.layers.cni.layer import _write_plugin
from pytest_k3s_sandbox.layers.cni.plugin import answer
from support.cni import NETNS, call, variables


class Runtime:
    """Call the plugin as a runtime would, in this process."""

    def __init__(self, folder: Path, subnet: str = "10.42.0.0/24") -> None:
        """Keep the configuration."""
        self.folder = folder
        self.config: dict[str, Any] = {
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "fake",
            "ipam": {"type": "fake", "subnet": subnet, "dataDir": str(folder)},
        }

    def __call__(
        self,
        command: str,
        container: str = "pod-1",
        *,
        ifname: str = "eth0",
        **more: object,
    ) -> tuple[int, Any]:
        """Run one operation; ``more`` goes into the configuration, ``valid`` under its full name."""
        if "valid" in more:
            more["cni.dev/valid-attachments"] = more.pop("valid")
        config: dict[str, object] = {**self.config, **more}
        environ = variables(command, container, ifname) | {"CNI_PATH": "/bin"}
        return answer(environ, json.dumps(config).encode())


@pytest.fixture
def cni(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path / "state")


def test_add_answers_with_an_address_on_the_interface(cni: Runtime) -> None:
    assert cni("ADD") == (
        0,
        {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": NETNS}],
            "ips": [{"address": "10.42.0.2/24", "gateway": "10.42.0.1", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.42.0.1"}],
            "dns": {},
        },
    )
    assert cni("ADD", "pod-2")[1]["ips"][0]["address"] == "10.42.0.3/24"


def test_add_passes_the_result_before_it_on(cni: Runtime) -> None:
    before = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
        "dns": {"nameservers": ["10.43.0.10"]},
    }
    code, result = cni("ADD", prevResult=before)
    assert code == 0
    assert [interface["name"] for interface in result["interfaces"]] == ["lo", "eth0"]
    assert [ip["interface"] for ip in result["ips"]] == [0, 1]
    assert result["dns"] == before["dns"]
    assert cni("CHECK", prevResult=result) == (0, None)


def test_a_second_add_is_an_error_and_changes_nothing(cni: Runtime) -> None:
    _, result = cni("ADD")
    code, error = cni("ADD")
    assert code == error["code"] == 101
    assert "DEL must come first" in error["details"]
    assert cni("CHECK", prevResult=result)[0] == 0
    assert cni("ADD", ifname="eth1")[0] == 0


def test_networks_do_not_share_attachments(cni: Runtime) -> None:
    assert cni("ADD")[0] == 0
    assert cni("ADD", name="other")[0] == 0


def test_del_succeeds_any_number_of_times_and_for_the_unknown(cni: Runtime) -> None:
    assert cni("DEL") == (0, None)
    cni("ADD")
    assert [cni("DEL"), cni("DEL"), cni("DEL", "never-added")] == [(0, None)] * 3
    assert cni("ADD")[0] == 0


def test_check_tells_what_is_wrong(cni: Runtime) -> None:
    _, result = cni("ADD")
    assert cni("CHECK", prevResult=result) == (0, None)
    assert cni("CHECK")[1]["code"] == 7  # no prevResult
    changed = {**result, "ips": [{**result["ips"][0], "address": "10.42.0.99/24"}]}
    code, error = cni("CHECK", prevResult=changed)
    assert (code, error["code"]) == (102, 102)
    assert "10.42.0.2" in error["details"]
    cni("DEL")
    code, error = cni("CHECK", prevResult=result)
    assert (code, error["code"]) == (3, 3)
    assert "pod-1" in error["details"]


def test_gc_removes_what_is_not_valid_any_more(cni: Runtime) -> None:
    results = {name: cni("ADD", name)[1] for name in ("a", "b", "c")}
    assert cni("GC", valid=[{"containerID": "b", "ifname": "eth0"}]) == (0, None)
    codes = {name: cni("CHECK", name, prevResult=result)[0] for name, result in results.items()}
    assert codes == {"a": 3, "b": 0, "c": 3}
    assert cni("GC", valid=None) == (0, None)
    assert cni("CHECK", "b", prevResult=results["b"])[0] == 3


def test_gc_without_a_list_frees_nothing(cni: Runtime) -> None:
    _, result = cni("ADD")
    code, error = cni("GC")
    assert (code, error["code"]) == (7, 7)
    assert cni("CHECK", prevResult=result)[0] == 0


def test_add_and_status_report_a_full_range(tmp_path: Path) -> None:
    cni = Runtime(tmp_path, "10.42.0.0/29")
    assert cni("STATUS") == (0, None)
    addresses = [cni("ADD", f"pod-{number}")[1]["ips"][0]["address"] for number in range(5)]
    assert addresses == [f"10.42.0.{number}/29" for number in range(2, 7)]
    code, error = cni("ADD", "one-more")
    assert (code, error["code"], error["msg"]) == (100, 100, "no address is free")
    code, error = cni("STATUS")
    assert (code, error["code"]) == (50, 50)
    assert "10.42.0.0/29" in error["details"]
    cni("DEL", "pod-3")
    assert cni("STATUS") == (0, None)
    assert cni("ADD", "one-more")[1]["ips"][0]["address"] == "10.42.0.5/29"


def test_status_says_that_allocations_cannot_be_kept(cni: Runtime) -> None:
    cni.folder.write_text("a file where the folder should be")
    assert cni("STATUS")[0] == 50
    code, error = cni("ADD")
    assert (code, error["code"]) == (5, 5)
    assert str(cni.folder) in error["details"]


@pytest.mark.parametrize(
    ("name", "content"), [("last", "x\n"), ("10.42.0.300", "pod-9 eth0\n"), ("x", "y\n")]
)
def test_a_broken_record_is_an_error_and_stays(cni: Runtime, name: str, content: str) -> None:
    cni("ADD")
    record = cni.folder / "net" / name
    record.write_text(content)
    assert cni("STATUS")[1]["code"] == 51
    assert cni("ADD", "pod-2")[1]["code"] == 6
    assert record.read_text() == content


def test_what_a_killed_plugin_left_is_held_until_its_del_or_gc(cni: Runtime) -> None:
    cni("ADD")
    (cni.folder / "net" / "pod-2:eth0").touch()  # before the address
    assert cni("ADD", "pod-2")[1]["code"] == 101
    assert cni("DEL", "pod-2") == (0, None)
    assert cni("ADD", "pod-2")[0] == 0
    (cni.folder / "net" / "10.42.0.9").touch()  # before it wrote whose it is
    rows = [{"containerID": name, "ifname": "eth0"} for name in ("pod-1", "pod-2")]
    assert cni("GC", valid=rows) == (0, None)
    assert sorted(path.name for path in (cni.folder / "net").iterdir()) == [
        *("10.42.0.2", "10.42.0.3", "last", "lock", "pod-1:eth0", "pod-2:eth0")
    ]


def test_version_lists_what_is_spoken(cni: Runtime) -> None:
    expected = {"cniVersion": "1.0.0", "supportedVersions": ["1.0.0", "1.1.0"]}
    assert cni("VERSION") == (0, expected)
    _, said = answer({"CNI_COMMAND": "VERSION"}, b'{"cniVersion": "0.4.0"}')
    assert said is not None
    assert said["cniVersion"] == "0.4.0"


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"cniVersion": "0.4.0"}, 1, "0.4.0"),
        ({"cniVersion": None}, 1, "1.0.0"),
        ({"name": ""}, 7, "name"),
        ({"name": "../up"}, 7, "../up"),
        ({"name": None}, 7, "name"),
        ({"ipam": "host-local"}, 7, "ipam"),
        ({"ipam": {"ranges": [1]}}, 2, "ipam.ranges: [1]"),
        ({"ipam": {"subnet": "10.42.0.1/24"}}, 7, "10.42.0.1/24"),
        ({"ipam": {"subnet": "10.42.0.0/31"}}, 7, "too small"),
        ({"ipam": {"subnet": "fd00::/64"}}, 7, "fd00"),
        ({"ipam": {"gateway": "10.43.0.1"}}, 7, "10.43.0.1"),
        ({"ipam": {"dataDir": "relative"}}, 7, "relative"),
        ({"prevResult": 1}, 7, "prevResult"),
    ],
)
def test_a_wrong_configuration_is_named(cni: Runtime, change: dict[str, Any], code: int, says: str) -> None:
    if isinstance(change.get("ipam"), dict):
        change = {"ipam": {"dataDir": str(cni.folder), **change["ipam"]}}
    given_code, error = cni("ADD", **change)
    assert (given_code, error["code"]) == (code, code)
    assert says in error["msg"] + error.get("details", "")
    assert not cni.folder.exists()


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"CNI_COMMAND": "add"}, ["CNI_COMMAND"]),
        ({"CNI_COMMAND": None}, ["CNI_COMMAND"]),
        (
            {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""},
            ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        ),
        ({"CNI_CONTAINERID": "-x"}, ["CNI_CONTAINERID"]),
        ({"CNI_CONTAINERID": "x\n"}, ["CNI_CONTAINERID"]),
        ({"CNI_IFNAME": "a" * 16}, ["CNI_IFNAME"]),
        ({"CNI_IFNAME": ".."}, ["CNI_IFNAME"]),
        ({"CNI_IFNAME": "a/b"}, ["CNI_IFNAME"]),
    ],
)
def test_wrong_variables_are_named(cni: Runtime, environ: dict[str, str | None], names: list[str]) -> None:
    good = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_NETNS": NETNS, "CNI_IFNAME": "eth0"}
    variables = {name: value for name, value in {**good, **environ}.items() if value is not None}
    code, error = answer(variables, json.dumps(cni.config).encode())
    assert error is not None
    assert (code, error["code"]) == (4, 4)
    for name in names:
        assert name in error["msg"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_malformed_configuration_is_an_error(content: bytes) -> None:
    code, error = answer({"CNI_COMMAND": "ADD"}, content)
    assert error is not None
    assert (code, error["code"], error["cniVersion"]) == (6, 6, "1.1.0")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("a1/.\n é", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("a1/.\n é", max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
        st.sampled_from(["", "ADD", "GC", "CHECK", "DEL", "STATUS", "a", "/", "\n"]),
    ),
    st.dictionaries(st.sampled_from(["cniVersion", "name", "prevResult"]), values).map(
        lambda config: {**config, "ipam": {"dataDir": "/proc/no/such/folder"}}
    ),
)
def test_any_input_gets_an_answer_and_never_an_exception(
    environ: dict[str, str], config: dict[str, Any]
) -> None:
    code, document = answer(environ, json.dumps(config).encode())
    assert code == 0 or (document is not None and document["code"] == code)


def test_an_unforeseen_error_is_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(plugin, "answer", broken)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    assert plugin.main() == 199
    error = json.loads(capsys.readouterr().out)
    assert error["code"] == 199
    assert "unforeseen" in error["details"]


class TestProgram:
    """The plugin as containerd starts it: a program of its own."""

    @pytest.fixture
    def program(self, tmp_path: Path) -> Path:
        """Install the plugin."""
        _write_plugin(tmp_path, str(tmp_path / "lib"), sys.executable)
        return tmp_path / "lib" / "k3s-sandbox-fake-cni"

    def run(self, program: Path, command: str, config: object, container: str = "a") -> Any:  # noqa: ANN401 - JSON
        """Run it once."""
        return call(program, json.dumps(config), variables(command, container))

    def test_it_imports_neither_the_package_nor_site(self, program: Path) -> None:
        """A start costs no more than it must."""
        source = program.read_text().replace("sys.exit(main())", "print(*sys.modules)")
        done = subprocess.run(
            [sys.executable, "-IS", "-c", source], capture_output=True, text=True, check=True, timeout=30
        )
        modules = set(done.stdout.split())
        assert "fake_cni.plugin" in modules
        assert not modules & {"pytest_k3s_sandbox", "site", "argparse", "dataclasses", "pathlib", "typing"}

    def test_plugins_side_by_side_share_no_address(self, program: Path) -> None:
        """The lock holds between processes."""
        config = Runtime(program.parent / "state", "10.42.0.0/27").config
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda n: self.run(program, "ADD", config, f"pod-{n}"), range(24)))
        assert [code for code, _ in answers] == [0] * 24
        assert len({result["ips"][0]["address"] for _, result in answers}) == 24
        assert len(list((program.parent / "state" / "net").iterdir())) == 2 * 24 + 2

    def test_an_error_is_json_and_an_exit_code(self, program: Path) -> None:
        """As the specification's section "Errors" wants it."""
        code, error = self.run(program, "ADD", {"cniVersion": "9.0.0"})
        assert (code, error["code"]) == (1, 1)

    def test_a_python_whose_path_is_long_or_has_a_space_works(self, tmp_path: Path) -> None:
        """A script's first line can name neither."""
        folder = tmp_path / "with space" / ("x" * 120)
        folder.mkdir(parents=True)
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        _write_plugin(tmp_path, str(tmp_path / "lib"), str(python))
        program = tmp_path / "lib" / "k3s-sandbox-fake-cni"
        assert self.run(program, "VERSION", {"cniVersion": "1.0.0"})[0] == 0
