"""Rule files, right and wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.layers.interceptor.checks import checked
from pytest_k3s_sandbox.layers.interceptor.filter import Stops
from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, load_rules, parse_rules, preset_names
from pytest_k3s_sandbox.layers.interceptor.profiles import kinds_of_stops
from pytest_k3s_sandbox.layers.interceptor.rules import (
    PATTERN,
    PREFIX,
    FaultRule,
    MaskRule,
    MountRule,
    RedirectRule,
    Rules,
    StatfsRule,
    StatxRule,
)
from pytest_k3s_sandbox.layers.interceptor.syscalls import Group

if TYPE_CHECKING:
    from pathlib import Path


def test_all_fields() -> None:
    text = """
        description = "everything"
        [[statfs]]
        original = 0x01021997
        replacement = 0xEF53
        under = "/x/"
        [[redirect]]
        path = "/proc/diskstats"
        target = "{tree}/d"
        calls = ["open", "stat"]
        [[redirect]]
        prefix = "/proc/sys/"
        target = "/t/"
        [[mount]]
        type = "fuse*"
        under = "/sys"
        new_type = "cgroup"
        source = "cgroup"
        device = "8:1"
        options = "rw,{controller}"
        root = "/"
        programs = ["runc"]
        [[mask]]
        under = "/sys/fs/cgroup"
        calls = ["close"]
        [[redirect]]
        pattern = "/x/*"
        content = "text"
        [[fault]]
        prefix = "/y"
        errno = "EIO"
        calls = ["statfs", "change"]
        skip = 2
        times = 3
        [[statx]]
        under = "/sys/fs/cgroup/"
        programs = ["crun"]
    """
    assert parse_rules(text, "host") == Rules(
        (StatfsRule(0x01021997, 0xEF53, "/x"),),
        (
            RedirectRule("/proc/diskstats", "{tree}/d", groups=(Group.OPEN, Group.STAT)),
            RedirectRule("/proc/sys", "/t", PREFIX),
            RedirectRule("/x/*", None, PATTERN, content="text"),
        ),
        (MountRule("fuse*", "/sys", "cgroup", "cgroup", "8:1", "rw,{controller}", "/", ("runc",)),),
        (MaskRule("/sys/fs/cgroup", (Group.CLOSE,)),),
        (FaultRule("/y", 5, PREFIX, (Group.STATFS, Group.CHANGE), 2, 3),),
        statx=(StatxRule("/sys/fs/cgroup", ("crun",)),),
    )


def test_an_empty_file_is_no_rules() -> None:
    assert parse_rules("", "host") == Rules()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[statfs]]\noriginal = ?\n", "(at line 2, column 12)"),
        ("[[statfs]]\noriginal = 1", "line 1: [[statfs]] number 1, field 'replacement': missing"),
        (
            "[[statfs]]\nreplacement = 1",
            "line 1: [[statfs]] number 1, field 'original': 'original' or 'under'",
        ),
        (
            "[[statfs]]\noriginal = 1\nreplacement = 1\nprograms = [1]",
            "line 4: [[statfs]] number 1, field 'programs': [1] is not a list of texts",
        ),
        (
            "[[fault]]\npath = '/a'\nerrno = 'EOOPS'",
            "line 3: [[fault]] number 1, field 'errno': 'EOOPS' is not the name of an errno",
        ),
        (
            "[[fault]]\npath = '/a'\nerrno = 'EIO'\ntimes = 0",
            "line 4: [[fault]] number 1, field 'times': 0 is less than 1",
        ),
        (
            "[[redirect]]\npath = '/a'\ntarget = '/x'\ncontent = ''",
            "line 3: [[redirect]] number 1, field 'target': exactly one of 'target' and 'content'",
        ),
        (
            "[[redirect]]\npath = '/a'\ntarget = '/x'\ncalls = ['close']",
            "line 4: [[redirect]] number 1, field 'calls': unknown group of calls 'close'; known: open, stat",
        ),
        (
            "[[statfs]]\noriginal = 1\nreplacement = 'x'",
            "line 3: [[statfs]] number 1, field 'replacement': 'x' is not of type int",
        ),
        (
            "[[statfs]]\noriginal = true\nreplacement = 1",
            "line 2: [[statfs]] number 1, field 'original': True is not of type int",
        ),
        (
            "[[statfs]]\noriginal = -1\nreplacement = 1",
            "line 2: [[statfs]] number 1, field 'original': -0x1 is not an f_type",
        ),
        (
            "[[mask]]\nunder = '/a'\n\n[[mask]]\nunder = 'b'",
            "line 5: [[mask]] number 2, field 'under': 'b' is not an absolute path",
        ),
        (
            "[[mask]]\nunder = '/a/../b'",
            "line 2: [[mask]] number 1, field 'under': '/a/../b' is not an absolute path",
        ),
        ("[[mask]]\nunder = '/a'\ntypo = 1", "line 3: [[mask]] number 1, field 'typo': unknown field"),
        ("[[mask]]", "line 1: [[mask]] number 1, field 'under': missing"),
        ("[[statx]]", "line 1: [[statx]] number 1, field 'under': missing"),
        ("[[statx]]\nunder = 'a'", "line 2: [[statx]] number 1, field 'under': 'a' is not an absolute path"),
        ("[[statx]]\nunder = '/a'\nmask = 1", "line 3: [[statx]] number 1, field 'mask': unknown field"),
        ("[[redirect]]\ntarget = '/x'", "line 1: [[redirect]] number 1, field 'path': exactly one of"),
        (
            "[[redirect]]\npath = '/a'\nprefix = '/b'\ntarget = '/x'",
            "line 2: [[redirect]] number 1, field 'path': exactly one of",
        ),
        (
            "[[redirect]]\npath = '/a'\ntarget = 'x'",
            "line 3: [[redirect]] number 1, field 'target': 'x' is not an absolute path",
        ),
        (
            "[[redirect]]\npath = '/a'\ntarget = '/x'\ncalls = ['fly']",
            "line 4: [[redirect]] number 1, field 'calls': unknown group of calls 'fly'; known: open",
        ),
        (
            "[[redirect]]\npath = '/a'\ntarget = '/x'\ncalls = []",
            "line 4: [[redirect]] number 1, field 'calls': is empty",
        ),
        (
            "[[mount]]\ntype = 'x'\ndevice = '8'",
            "line 3: [[mount]] number 1, field 'device': '8' is not major:minor",
        ),
        (
            "[[redirect]]\npattern = '/[b-a]'\ntarget = '/x'",
            "line 2: [[redirect]] number 1, field 'pattern': '/[b-a]': bad character range b-a",
        ),
        (
            "[[mount]]\ntype = 'x'\nonly = ['stat']",
            "line 3: [[mount]] number 1, field 'only': unknown call 'stat'; known: creat, open, openat",
        ),
        ("[[retry]]\nunder = '/a'\ncalls = ['change']", "line 3: [[retry]] number 1, field 'calls': unknown"),
        ("[[retry]]\nunder = '/a'\nexits = ['mkdir']", "line 3: [[retry]] number 1, field 'exits': unknown"),
        ("[mask]\nunder = '/a'", "must be written as [[mask]]"),
        (
            "[[mak]]\nunder = '/a'",
            "line 1: 'mak': unknown table; known: statfs, redirect, mount, mask, fault, retry, statx",
        ),
        ("mak = 1", "line 1: 'mak': unknown table"),
    ],
)
def test_errors_name_file_line_and_field(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules(text, "some.toml")
    assert "some.toml" in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=message) as caught:
            load_rules(path)
        assert str(path) in str(caught.value)
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="utf-8"):
        load_rules(tmp_path / "latin")


def test_the_presets() -> None:
    assert preset_names() == ("exp04", "exp06", "exp08", "exp08-containerd")
    for name in preset_names():
        assert load_preset(name) != Rules()
    assert load_preset("exp08").statfs[0] == StatfsRule(0x01021997, 0xEF53)


def test_no_call_of_crun_stops() -> None:
    """Its containers' programs inherit its filter, and would stop, too."""
    preset = load_preset("exp08-containerd")
    crun = preset.only(lambda programs: not programs or "crun" in programs)
    assert kinds_of_stops(crun) == {"statx": Stops.REFUSED}


def test_the_preset_for_the_kubelet_completes_statx_on_the_cgroups() -> None:
    assert [rule.under for rule in load_preset("exp08").statx] == ["/sys/fs/cgroup"]


@pytest.mark.parametrize("name", ["exp99", "../presets/exp08", ""])
def test_an_unknown_preset(name: str) -> None:
    with pytest.raises(ConfigError, match=r"use one of exp04, exp06, exp08, exp08-containerd"):
        load_preset(name)


# YAML.


def test_yaml_says_the_same() -> None:
    text = """
        statfs:
          - {original: 0x01021997, replacement: 0xEF53}
        redirect:
          - prefix: /proc/sys
            target: "{tree}/proc/sys"
            calls: [open, stat]
    """
    assert parse_rules(text, "rules.yaml") == Rules(
        (StatfsRule(0x01021997, 0xEF53),),
        (RedirectRule("/proc/sys", "{tree}/proc/sys", PREFIX, (Group.OPEN, Group.STAT)),),
    )
    assert parse_rules("", "rules.yml") == Rules()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1, column 5"),
        ("- a", "is not a mapping of statfs, redirect"),
        ("mask: {under: /a}", "line 1: 'mask': must be written as a list of mappings under mask:"),
        (
            "mask:\n- under: /a\n- under: b",
            "line 3: [[mask]] number 2, field 'under': 'b' is not an absolute",
        ),
        ("mask:\n- under: /a\n  typo: 1", "line 3: [[mask]] number 1, field 'typo': unknown field"),
        ("mask:\n- {}", "line 2: [[mask]] number 1, field 'under': missing"),
        ("mak: 1", "line 1: 'mak': unknown table"),
    ],
)
def test_errors_in_yaml_name_file_line_and_field(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules(text, "some.yaml")
    assert "some.yaml" in str(caught.value)
    assert message in str(caught.value)


# Rules made in Python.


def test_right_rules_pass() -> None:
    rules = load_preset("exp08")
    assert checked(rules) is rules


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        (Rules(statfs=(StatfsRule(1, -1),)), "replacement"),
        (Rules(redirects=(RedirectRule("a", "/b"),)), "path"),
        (Rules(redirects=(RedirectRule("/a"),)), "target"),
        (Rules(redirects=(RedirectRule("/a", "/b", groups=()),)), "calls"),
        (Rules(mounts=(MountRule("x", device="8"),)), "device"),
        (Rules(masks=(MaskRule("/a", (Group.STAT,)),)), "calls"),
        (Rules(masks=(MaskRule("/a", programs=("",)),)), "programs"),
        (Rules(statx=(StatxRule("a"),)), "under"),
        (Rules(faults=(FaultRule("/a", 100000),)), "errno"),
    ],
)
def test_wrong_rules_are_named(rules: Rules, field: str) -> None:
    with pytest.raises(ConfigError, match=f"field '{field}'"):
        checked(rules)


def test_a_fault_where_nothing_is_mounted() -> None:
    text = '[[fault]]\nprefix = "/run"\nerrno = "EINVAL"\ncalls = ["umount"]\nunmounted = true\n'
    (rule,) = parse_rules(text, "rules.toml").faults
    assert rule.unmounted
    assert rule.calls == {"umount2"}
