"""Rules that change the text of a file: cgroup tables and substitutions."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.layers.interceptor.cgrouptable import completed
from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, parse_rules
from pytest_k3s_sandbox.layers.interceptor.matching import PathRules, is_cgroup_table
from pytest_k3s_sandbox.layers.interceptor.overlays import Overlays
from pytest_k3s_sandbox.layers.interceptor.rules import CgroupsRule, Rules, SubstituteRule, reads_only
from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch
from pytest_k3s_sandbox.layers.interceptor.syscalls import OPENAT2, PATH_CALLS

OPENAT, STAT = PATH_CALLS[257], PATH_CALLS[262]
OWN = b"2:memory:/k8s.io/x\n1:cpu:/k8s.io/x\n"
WHOLE = b"#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t3\t1\nmemory\t2\t3\t1\n"
SERVED = b"cpu\t3\t/other\nfreezer\t4\t/k8s.io/a:b\nnet_cls,net_prio\t1\t/\nsystemd\t2\t/s\n"


def test_a_process_table_gets_the_hierarchies_that_it_lacks_as_the_kernel_writes_them() -> None:
    table, added = completed(OWN, SERVED, whole=False)
    assert added == 3
    assert table == b"5:name=systemd:/s\n4:net_cls,net_prio:/\n3:freezer:/k8s.io/a:b\n" + OWN
    assert completed(table, SERVED.replace(b"systemd\t2\t/s\n", b""), whole=False) == (table, 0)


def test_the_table_of_controllers_gets_a_line_for_each() -> None:
    table, added = completed(WHOLE, SERVED.replace(b"systemd\t2\t/s\n", b""), whole=True)
    assert added == 3
    assert table == WHOLE + b"freezer\t3\t4\t1\nnet_cls\t4\t1\t1\nnet_prio\t4\t1\t1\n"


def test_a_process_that_has_ended_leaves_the_table_as_it_is() -> None:
    assert completed(OWN, b"", whole=False) == (OWN, 0)
    assert completed(b"", SERVED, whole=False)[0].count(b"\n") == 4


@pytest.mark.parametrize(
    ("path", "table"),
    [
        (b"/proc/cgroups", True),
        (b"/proc/self/cgroup", True),
        (b"/proc/thread-self/cgroup", True),
        (b"/proc/17/cgroup", True),
        (b"/proc/17/task/18/cgroup", True),
        (b"/proc/17/cgroups", False),
        (b"/proc/cgroup", False),
        (b"/x/proc/self/cgroup", False),
    ],
)
def test_cgroup_tables_by_their_names_alone(path: bytes, table: bool) -> None:
    rules = PathRules(Rules(cgroups=(CgroupsRule("/served", only=("openat",)),)))
    assert is_cgroup_table(path) is table
    assert rules.decide(path, OPENAT).cgroup_table is table
    assert not rules.decide(path, PATH_CALLS[OPENAT2]).cgroup_table
    assert not rules.decide(path, STAT).cgroup_table


def test_only_opens_to_read_stop_for_texts() -> None:
    rules = parse_rules(
        """
        [[cgroups]]
        served = "/tmp/fuse-cgroup"
        [[substitute]]
        path = "/etc/x"
        find = "(a)b"
        replacement = '\\1'
        """,
        "x.toml",
    )
    assert rules.substitutes == (SubstituteRule("/etc/x", "(a)b", "\\1"),)
    assert reads_only(rules) == {"open", "openat", "openat2", "creat"}
    assert PathRules(rules).decide(b"/etc/x", OPENAT).substitute is rules.substitutes[0]
    assert PathRules(rules).decide(b"/etc/x", STAT).substitute is None


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ('find = "("\nreplacement = "x"', "'find': '\\(' is not a regular expression"),
        ("find = \"a\"\nreplacement = '\\1'", "'replacement'"),
        ('replacement = "x"', "'find': missing"),
    ],
)
def test_a_wrong_substitution_is_named(fields: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        parse_rules(f'[[substitute]]\npath = "/x"\n{fields}\n', "x.toml")


def test_a_wrong_folder_of_cgroups_is_named() -> None:
    with pytest.raises(ConfigError, match="'served'"):
        parse_rules('[[cgroups]]\nserved = "x"\n', "x.toml")


def test_the_preset_for_crun_writes_a_version_that_it_reads() -> None:
    (rule,) = load_preset("exp08-containerd").substitutes
    for version in ("1.2.1", "1.1.0", "1.0.2"):
        text = f'{{"ociVersion":"{version}","process":{{"args":["1.2.1"]}}}}'
        assert re.sub(rule.find, rule.replacement, text, count=1) == text.replace(version, "1.0.2", 1)


def test_a_file_is_substituted_once_and_only_where_the_text_is(tmp_path: Path) -> None:
    rule = SubstituteRule(str(tmp_path / "a"), "b+", "c")
    rules = Rules(substitutes=(rule,))
    (tmp_path / "a").write_bytes(b"\xffabbb b")
    (tmp_path / "a").chmod(0o640)
    path = os.fsencode(tmp_path / "a")
    with contextlib.closing(Scratch(str(tmp_path))) as scratch:
        overlays, decision = Overlays(scratch), PathRules(rules).decide(path, OPENAT)
        found = overlays.rewritten(os.getpid(), path, decision, rules)
        assert found is not None
        assert Path(os.fsdecode(found[0])).read_bytes() == b"\xffac b"
        assert Path(os.fsdecode(found[0])).stat().st_mode & 0o777 == 0o440  # secrets stay secret
        assert found[1] == {rule.label: 1}
        (tmp_path / "a").write_bytes(b"a")
        assert overlays.rewritten(os.getpid(), path, decision, rules) is None
        (tmp_path / "a").unlink()
        assert overlays.rewritten(os.getpid(), path, decision, rules) is None


def test_the_own_table_is_completed_from_the_served_tree(tmp_path: Path) -> None:
    rules = Rules(cgroups=(CgroupsRule(str(tmp_path)),))
    decision = PathRules(rules).decide(b"/proc/self/cgroup", OPENAT)
    with contextlib.closing(Scratch(str(tmp_path))) as scratch:
        overlays = Overlays(scratch)
        assert overlays.rewritten(os.getpid(), b"/proc/self/cgroup", decision, rules) is None  # no server
        (tmp_path / f"pid.{os.getpid()}").write_text("made_up\t2\t/here\n")
        for path in (b"/proc/self/cgroup", b"/proc/%d/cgroup" % os.getpid()):
            found = overlays.rewritten(os.getpid(), path, decision, rules)
            assert found is not None
            first, *rest = Path(os.fsdecode(found[0])).read_text().splitlines()
            assert first.endswith(":made_up:/here")
            assert rest == Path("/proc/self/cgroup").read_text().splitlines()
