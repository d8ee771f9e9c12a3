"""The trees that stand in for kernel files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.workarounds import sysctl

ASIDE = "/run/aside"
GVISOR = "d kernel\nf kernel/hostname\nd vm\nf vm/overcommit_memory\nd net\nd net/ipv4\nf net/ipv4/tcp_rmem\n"

NAMES = st.lists(st.sampled_from(["kernel", "vm", "panic", "x y", "keys"]), min_size=1, max_size=3).map(
    "/".join
)


def test_what_the_kernel_has_is_linked_and_what_the_kubelet_wants_is_a_file() -> None:
    tree = sysctl.plan(GVISOR, ASIDE)
    assert tree.links == {
        "kernel/hostname": f"{ASIDE}/kernel/hostname",
        "net/ipv4/tcp_rmem": f"{ASIDE}/net/ipv4/tcp_rmem",
    }
    assert tree.files == {path: f"{value}\n" for path, value in sysctl.KUBELET_WANTS.items()}
    assert tree.folders == ("kernel", "kernel/keys", "net", "net/ipv4", "vm")


def test_a_sandbox_with_no_tunables_at_all_gets_those_of_the_kubelet() -> None:
    tree = sysctl.plan("", ASIDE)
    assert tree.links == {}
    assert tree.folders == ("kernel", "kernel/keys", "vm")


@given(st.dictionaries(NAMES, st.sampled_from("fl")))
def test_nothing_is_lost_and_no_path_is_two_things(rows: dict[str, str]) -> None:
    folders = {str(parent) for path in rows for parent in PurePosixPath(path).parents} - {"."}
    files = {path: kind for path, kind in rows.items() if path not in folders}
    wanted_folders = {str(parent) for path in sysctl.KUBELET_WANTS for parent in PurePosixPath(path).parents}
    files = {path: kind for path, kind in files.items() if path not in wanted_folders}
    if any(str(parent) in sysctl.KUBELET_WANTS for path in rows for parent in PurePosixPath(path).parents):
        return  # a kernel whose kernel/panic is a folder does not exist
    listing = "".join(f"d {path}\n" for path in folders) + "".join(
        f"{k} {path}\n" for path, k in files.items()
    )
    tree = sysctl.plan(listing, ASIDE)
    things = [*tree.folders, *tree.links, *tree.files]
    assert len(set(things)) == len(things)
    assert set(files) | folders <= set(things)
    for index, folder in enumerate(tree.folders):
        parent = str(PurePosixPath(folder).parent)
        assert parent == "." or parent in tree.folders[:index]


def test_the_tree_on_disk_is_the_planned_one_and_can_be_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        sysctl.write_tree(tmp_path, sysctl.plan(GVISOR, ASIDE))
    assert (tmp_path / "sys/kernel/panic").read_text() == "10\n"
    assert (tmp_path / "sys/kernel/hostname").readlink() == Path(ASIDE, "kernel/hostname")
    assert (tmp_path / "sys/vm/overcommit_memory").is_file()
    assert (tmp_path / "diskstats").read_text() == ""


def test_network_devices_have_what_cadvisor_reads(tmp_path: Path) -> None:
    links = [{"ifname": "lo", "mtu": 65536}, {"ifname": "eth0", "mtu": 1500, "address": "02:00:00:00:00:01"}]
    for _ in range(2):
        sysctl.write_network_class(tmp_path, links)
    assert (tmp_path / "net/eth0/address").read_text() == "02:00:00:00:00:01\n"
    assert (tmp_path / "net/lo/mtu").read_text() == "65536\n"
    assert (tmp_path / "net/eth0/speed").read_text() == "-1\n"
