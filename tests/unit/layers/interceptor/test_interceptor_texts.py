"""Rules that change the text of a file: cgroup tables and substitutions."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.layers.interceptor.cgrouptable import completed
from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, parse_rules
from pytest_k3s_sandbox.layers.interceptor.matching import PathRules, is_cgroup_table
from pytest_k3s_sandbox.layers.interceptor.overlays import Overlays
from pytest_k3s_sandbox.layers.interceptor.rules import CgroupsRule, Rules, SubstituteRule, reads_only
from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch
from pytest_k3s_sandbox.layers.interceptor.starting import argument, substitute
from pytest_k3s_sandbox.layers.interceptor.syscalls import OPENAT2, PATH_CALLS

OPENAT, STAT = PATH_CALLS[257], PATH_CALLS[262]
OWN = b"2:memory:/k8s.io/x\n1:cpu:/k8s.io/x\n"
WHOLE = b"#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t3\t1\nmemory\t2\t3\t1\n"
SERVED = b"cpu\t3\t\t/other\nfreezer\t4\t\t/k8s.io/a:b\nnet_cls,net_prio\t1\t\t/\nsystemd\t2\t\t/s\n"


def test_a_process_table_gets_the_hierarchies_that_it_lacks_as_the_kernel_writes_them() -> None:
    table, added = completed(OWN, SERVED, whole=False)
    assert added == 3
    assert table == b"5:name=systemd:/s\n4:net_cls,net_prio:/\n3:freezer:/k8s.io/a:b\n" + OWN
    assert completed(table, SERVED.replace(b"systemd\t2\t\t/s\n", b""), whole=False) == (table, 0)


def test_the_table_of_controllers_gets_a_line_for_each() -> None:
    table, added = completed(WHOLE, SERVED.replace(b"systemd\t2\t\t/s\n", b""), whole=True)
    assert added == 3
    assert table == WHOLE + b"freezer\t3\t4\t1\nnet_cls\t4\t1\t1\nnet_prio\t4\t1\t1\n"


def test_a_hierarchy_that_the_kernel_has_under_another_name_gets_its_own() -> None:
    served = b"freezer\t4\tjob\t/ignored\n"
    assert completed(b"5:job:/x\n1:cpu:/x\n", served, whole=False) == (b"5:freezer:/x\n1:cpu:/x\n", 1)
    table = WHOLE + b"job\t5\t2\t1\n"
    assert completed(table, served, whole=True) == (WHOLE + b"freezer\t5\t2\t1\n", 1)
    assert completed(OWN, served, whole=False)[0].startswith(b"3:freezer:/ignored\n")


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


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[[refuse]]\ncalls = []", "'calls': is empty"),
        ('[[refuse]]\ncalls = ["statxx"]', "unknown call 'statxx'"),
        (
            '[[substitute]]\nfolder_option = "-b"\npath = "a/b"\nfind = "a"\nreplacement = "b"',
            "'a/b' is not the name of a file",
        ),
    ],
)
def test_other_wrong_fields_are_named(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        parse_rules(text, "x.toml")


def test_a_wrong_folder_of_cgroups_is_named() -> None:
    with pytest.raises(ConfigError, match="'served'"):
        parse_rules('[[cgroups]]\nserved = "x"\n', "x.toml")


def test_the_preset_for_crun_writes_a_version_that_it_reads() -> None:
    (rule,) = load_preset("exp08-containerd").substitutes
    assert (rule.folder_option, rule.path, rule.calls) == ("--bundle", "config.json", frozenset())
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
        (tmp_path / f"pid.{os.getpid()}").write_text("made_up\t2\t\t/here\n")
        for path in (b"/proc/self/cgroup", b"/proc/%d/cgroup" % os.getpid()):
            found = overlays.rewritten(os.getpid(), path, decision, rules)
            assert found is not None
            first, *rest = Path(os.fsdecode(found[0])).read_text().splitlines()
            assert first.endswith(":made_up:/here")
            assert rest == Path("/proc/self/cgroup").read_text().splitlines()


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([b"crun", b"--root", b"/r", b"create", b"--bundle", b"/b", b"id"], b"/b"),
        ([b"crun", b"create", b"--bundle=/b c", b"id"], b"/b c"),
        ([b"crun", b"create", b"id", b"--bundle"], None),
        ([b"crun", b"state", b"id"], None),
        ([b"--bundle", b"/b"], None),
        ([b""], None),
    ],
)
def test_the_folder_is_named_by_the_command_line(words: list[bytes], folder: bytes | None) -> None:
    assert argument(words, "--bundle") == folder


class TestAtTheStart:
    """A file is changed when the program that reads it starts."""

    RULE = SubstituteRule("config.json", "a+", "b", folder_option="--bundle")

    def changed(self, bundle: str, cwd: Path | None = None) -> bool:
        """Let a program start, and act at its start."""
        words = [sys.executable, "-c", "print(flush=True); input()", "--bundle", bundle]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()  # now /proc has its command line
                return substitute(process.pid, self.RULE)
            finally:
                process.kill()

    def test_in_place(self, tmp_path: Path) -> None:
        """Once, with the file's mode."""
        file = tmp_path / "config.json"
        file.write_bytes(b"\xffaaa a")
        file.chmod(0o640)
        assert self.changed(str(tmp_path))
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"\xffb a", 0o640)
        file.write_text("b")
        assert not self.changed(".", tmp_path)
        file.write_text("a")
        assert self.changed(".", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    def test_what_is_no_file_of_its_own_stays(self, tmp_path: Path) -> None:
        """A link, a FIFO and a missing file are for the program to judge."""
        (tmp_path / "other").write_text("a")
        (tmp_path / "config.json").symlink_to("other")
        assert not self.changed(str(tmp_path))
        assert (tmp_path / "other").read_text() == "a"
        (tmp_path / "config.json").unlink()
        os.mkfifo(tmp_path / "config.json")
        assert not self.changed(str(tmp_path))
        (tmp_path / "config.json").unlink()
        assert not self.changed(str(tmp_path))
