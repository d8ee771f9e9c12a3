"""Mount tables as text."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor.loading import load_preset
from pytest_k3s_sandbox.layers.interceptor.mounttable import (
    REWRITE,
    Mount,
    MountInfo,
    escape,
    parse_mountinfo,
    parse_mounts,
    render_mountinfo,
    render_mounts,
    rewrite_mountinfo,
    rewrite_mounts,
    rewrite_mountstats,
)
from pytest_k3s_sandbox.layers.interceptor.rules import MountRule
from pytest_k3s_sandbox.support.mountinfo import unescape

text = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
words = st.text(alphabet=string.ascii_letters + string.digits + ":_,=", min_size=1, max_size=10)
numbers = st.integers(min_value=0, max_value=2**31)
infos = st.builds(
    MountInfo,
    numbers,
    numbers,
    words,
    text,
    text,
    words,
    st.lists(words.filter(lambda tag: tag != "-"), max_size=3).map(tuple),
    words,
    text,
    text,
)
mounts = st.builds(Mount, text, text, words, text, words, words)

EXP08 = load_preset("exp08").mounts

GVISOR = """\
16 15 0:18 / / rw - 9p none rw,trans=fd,rfdno=3,wfdno=3,cache=fscache
17 16 0:19 / /dev rw - tmpfs none rw
18 16 0:20 / /sys ro - sysfs none rw
19 18 0:21 / /sys/fs/cgroup rw - tmpfs none rw
20 19 0:22 / /sys/fs/cgroup/memory rw - cgroup none rw,memory
21 20 0:30 / /sys/fs/cgroup/memory rw,nosuid - fuse.cgroupfs fusepy rw,user_id=0
22 21 0:31 / /sys/fs/cgroup/memory/inner rw - tmpfs none rw
23 19 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - fuse none rw
24 16 0:33 /x /mnt/elsewhere rw - fuse none rw
"""


@given(text)
def test_escaping_leaves_no_separator_and_comes_back(field: str) -> None:
    assert not set(escape(field)) & set(" \t\n#")
    assert unescape(escape(field)) == field


@given(infos)
def test_mountinfo_survives_the_round_trip(mount: MountInfo) -> None:
    assert parse_mountinfo(render_mountinfo(mount)) == mount


@given(mounts)
def test_mounts_survives_the_round_trip(mount: Mount) -> None:
    assert parse_mounts(render_mounts(mount)) == mount


@given(st.binary(max_size=200))
def test_without_a_fitting_rule_any_text_is_unchanged(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    rules = [MountRule(type="no-such-type", new_type="x")]
    assert rewrite_mountinfo(text, rules) == (text, {})
    assert rewrite_mounts(text, rules) == (text, {})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "1 2 0:1 / / rw",
        "1 2 0:1 / / rw - ext4 /dev/root",
        "x 2 0:1 / / rw - ext4 /dev/root rw",
        "1 2 0:1 / / rw - a b c d",
    ],
)
def test_another_form_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_mountinfo(line)


def test_optional_fields_are_kept() -> None:
    line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue"
    mount = parse_mountinfo(line)
    assert mount.optional == ("master:1", "shared:7")
    assert (mount.type, mount.source, mount.super_options) == ("ext3", "/dev/root", "rw,errors=continue")
    assert render_mountinfo(mount) == line


def test_the_running_systems_tables_are_understood_whole() -> None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        assert render_mountinfo(parse_mountinfo(line)) == line
    for line in Path("/proc/self/mounts").read_text().splitlines():
        assert render_mounts(parse_mounts(line)) == line


def test_exp08_makes_of_gvisors_mountinfo_what_a_kubelet_wants() -> None:
    text, counts = rewrite_mountinfo(GVISOR, EXP08)
    assert text.splitlines() == [
        "16 15 8:1 / / rw - ext4 /dev/root rw,trans=fd,rfdno=3,wfdno=3,cache=fscache",
        "17 16 0:19 / /dev rw - tmpfs none rw",
        "18 16 0:20 / /sys ro - sysfs none rw",
        "19 18 0:21 / /sys/fs/cgroup rw - tmpfs none rw",
        "21 19 0:30 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory",
        "22 21 0:31 / /sys/fs/cgroup/memory/inner rw - tmpfs none rw",
        "23 19 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
        "24 16 0:33 /x /mnt/elsewhere rw - fuse none rw",
    ]
    assert counts == {"mount fuse* under /sys/fs/cgroup": 2, "mount 9p under /": 1}
    ids = {parse_mountinfo(line).mount_id for line in text.splitlines()}
    assert {parse_mountinfo(line).parent_id for line in text.splitlines()} <= ids | {15}


def test_exp08_makes_the_same_of_mounts() -> None:
    table = (
        "none / 9p rw,trans=fd 0 0\n"
        "none /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
        "fusepy /sys/fs/cgroup/memory fuse rw,user_id=0 0 0\n"
    )
    assert rewrite_mounts(table, EXP08)[0] == (
        "/dev/root / ext4 rw,trans=fd 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    )


def test_stacked_mounts_of_other_types_stay_both() -> None:
    table = "none /mnt 9p rw 0 0\nnone /mnt tmpfs rw 0 0\n"
    assert rewrite_mounts(table, EXP08)[0] == "/dev/root /mnt ext4 rw 0 0\nnone /mnt tmpfs rw 0 0\n"


def test_stacked_mounts_that_no_rule_touches_stay_both() -> None:
    table = "none /mnt tmpfs rw 0 0\nnone /mnt tmpfs rw 0 0\n"
    assert rewrite_mounts(table, EXP08) == (table, {})


def test_a_mount_that_is_its_own_parent_ends_the_search() -> None:
    table = "5 5 0:1 / / rw - 9p none rw\n6 5 0:2 / / rw - 9p none rw\n7 5 0:3 / /x rw - tmpfs none rw\n"
    lines = rewrite_mountinfo(table, EXP08)[0].splitlines()
    assert [line.split()[0] for line in lines] == ["6", "7"]


def test_the_first_rule_that_fits_counts() -> None:
    rules = [MountRule(type="a*", new_type="first"), MountRule(type="*", new_type="second")]
    assert (
        rewrite_mounts("s /m ab o 0 0\ns /n b o 0 0\n", rules)[0] == "s /m first o 0 0\ns /n second o 0 0\n"
    )


def test_the_folder_of_a_rule_is_not_a_mere_prefix() -> None:
    rules = [MountRule(type="*", under="/sys/fs", new_type="x")]
    assert rewrite_mounts("s /sys/fsx a o 0 0\n", rules)[1] == {}
    assert rewrite_mounts("s /sys/fs a o 0 0\n", rules)[1] == {"mount * under /sys/fs": 1}


def test_new_fields_are_escaped() -> None:
    rules = [MountRule(type="a", source="my disk")]
    assert rewrite_mounts("s /m\\040n a o 0 0\n", rules)[0] == "my\\040disk /m\\040n a o 0 0\n"


def test_mountstats_is_rewritten_line_by_line_and_keeps_what_follows_the_type() -> None:
    rules = [
        MountRule("9p", "/", "ext4", source="/dev/root"),
        MountRule("fuse*", "/sys", "cgroup", source="a b"),
    ]
    text = (
        "device none mounted on / with fstype 9p\n"
        "device proc mounted on /proc with fstype proc\n"
        "no such line\n"
        "device x mounted on /sys/a\\040b with fstype fuse.x statvers=1.1\n"
    )
    found, counts = rewrite_mountstats(text, rules)
    assert found == (
        "device /dev/root mounted on / with fstype ext4\n"
        "device proc mounted on /proc with fstype proc\n"
        "no such line\n"
        "device a\\040b mounted on /sys/a\\040b with fstype cgroup statvers=1.1\n"
    )
    assert sum(counts.values()) == 2


def test_of_stacked_mounts_in_mountstats_the_covered_one_goes() -> None:
    rules = [MountRule("fuse*", "/sys", "cgroup")]
    text = "device a mounted on /sys/x with fstype cgroup\ndevice b mounted on /sys/x with fstype fuse.x\n"
    assert rewrite_mountstats(text, rules)[0] == "device b mounted on /sys/x with fstype cgroup\n"


def test_each_table_is_rewritten_by_its_own_name() -> None:
    functions = {"mountinfo": rewrite_mountinfo, "mounts": rewrite_mounts, "mountstats": rewrite_mountstats}
    assert functions == REWRITE
    assert Mount("a", "/b", "c", "rw")[4:] == ("0", "0")
