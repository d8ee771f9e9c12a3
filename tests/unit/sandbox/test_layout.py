"""What a sandbox shows, checked against a model of how mounts cover each other."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.sandbox import layout, oci
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Bind

NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
BINDS = st.lists(st.builds(Bind, source=NAMES.map(Path), target=NAMES, writable=st.booleans()), max_size=7)


def seen(binds: Sequence[Bind], path: str) -> tuple[Path, bool] | None:
    """Return the file on the machine that a path inside leads to: the deepest mount decides."""
    over = [bind for bind in binds if PurePosixPath(path).is_relative_to(bind.target)]
    if not over:
        return None
    deepest = max(over, key=lambda bind: len(PurePosixPath(bind.target).parts))
    return deepest.source / PurePosixPath(path).relative_to(deepest.target), deepest.writable


@given(BINDS, NAMES)
@example([Bind(Path("/a"), "/c"), Bind(Path("/b"), "/c/b"), Bind(Path("/a/b/a"), "/c/b/a")], "/c/b/a")
def test_dropping_covered_binds_changes_nothing_that_is_seen(binds: list[Bind], path: str) -> None:
    last = list({bind.target: bind for bind in binds}.values())
    assert seen(layout.drop_covered(binds), path) == seen(last, path)


@given(BINDS)
def test_binds_come_parents_first_once_each_and_as_few_as_possible(binds: list[Bind]) -> None:
    kept = layout.drop_covered(binds)
    targets = [PurePosixPath(bind.target) for bind in kept]
    assert len(set(targets)) == len(targets)
    for index, target in enumerate(targets):
        assert not any(earlier != target and earlier.is_relative_to(target) for earlier in targets[:index])
    for bind in kept:
        rest = [other for other in kept if other != bind]
        assert seen(rest, bind.target) != seen(kept, bind.target)


@given(BINDS)
def test_dropping_twice_is_dropping_once(binds: list[Bind]) -> None:
    once = layout.drop_covered(binds)
    assert layout.drop_covered(once) == once


def test_a_plan_shows_the_system_the_python_and_the_programs_and_neither_homes_nor_secrets(
    tmp_path: Path,
) -> None:
    plan = layout.plan(tmp_path, [Path("/x/kubelet")])
    by_target = {bind.target: bind for bind in plan.binds}
    assert by_target["/usr"] == Bind(Path("/usr"), "/usr")
    assert by_target["/etc"].source == tmp_path / "etc"
    assert by_target[BIN_DIR] == Bind(tmp_path / "bin", BIN_DIR)
    assert [bind.target for bind in plan.binds if bind.writable] == ["/var"]
    assert not {"/", "/home", "/root", "/dev", "/proc", "/sys", "/mnt", "/boot"} & set(by_target)
    assert seen(plan.binds, sys.prefix) == (Path(sys.prefix), False)
    assert seen(plan.binds, sys.base_prefix) == (Path(sys.base_prefix), False)
    assert seen(plan.binds, layout.__file__) == (Path(layout.__file__), False)
    assert plan.programs == (Path("/x/kubelet"),)


def test_a_bind_of_the_caller_replaces_one_of_ours(tmp_path: Path) -> None:
    plan = layout.plan(tmp_path, [], [Bind(tmp_path, "/etc", writable=True)])
    assert [bind.source for bind in plan.binds if bind.target == "/etc"] == [tmp_path]


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def prepared(workdir: Path, programs: Sequence[Path] = (), binds: Sequence[Bind] = ()) -> layout.Layout:
    plan = layout.plan(workdir, programs, binds)
    layout.prepare(plan, workdir, hostname="k3ssb-test")
    return plan


def test_prepare_makes_every_mount_point(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    binds = [Bind(tmp_path / "file", "/srv/deep/file"), Bind(tmp_path, "/srv/folder")]
    plan = prepared(workdir, binds=binds)
    for path in ("proc", "sys", "dev", "root", "tmp", "run", *(bind.target[1:] for bind in plan.binds)):
        assert (plan.rootfs / path).exists(), path
    assert (plan.rootfs / "srv/deep/file").is_file()
    assert (plan.rootfs / "bin").readlink() == Path("usr/bin")


def test_etc_has_what_programs_need_and_no_secret(workdir: Path) -> None:
    prepared(workdir)
    etc = workdir / "etc"
    assert (etc / "hostname").read_text() == "k3ssb-test\n"
    assert "k3ssb-test" in (etc / "hosts").read_text()
    assert len((etc / "machine-id").read_text().strip()) == 32
    assert (etc / "passwd").read_text() == Path("/etc/passwd").read_text()
    for secret in ("shadow", "gshadow", "ssh", "ssl", "sudoers", "environment"):
        assert not (etc / secret).exists()
    for name in ("cni", "rancher"):
        assert Path(os.path.normpath((etc / name).readlink())) == Path(STATE_DIR, name)


def test_programs_are_linked_not_copied_and_followed_to_their_file(workdir: Path, tmp_path: Path) -> None:
    real = tmp_path / "kubelet-1.34"
    real.write_text("#!/bin/sh\n")
    real.chmod(0o755)
    (tmp_path / "kubelet").symlink_to(real)
    prepared(workdir, [tmp_path / "kubelet"])
    shown = workdir / "bin" / "kubelet"
    assert shown.samefile(real)
    assert not shown.is_symlink()


def test_a_program_of_another_file_system_is_copied_with_its_mode(workdir: Path) -> None:
    shm = Path("/dev") / "shm"  # another file system
    if not shm.is_dir() or shm.stat().st_dev == workdir.stat().st_dev or not os.access(shm, os.W_OK):
        pytest.skip("not applicable: needs a second file system at /dev/shm")
    program = shm / f"k3s-sandbox-test-{os.getpid()}"
    try:
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        prepared(workdir, [program])
        shown = workdir / "bin" / program.name
        assert shown.read_text() == "#!/bin/sh\n"
        assert shown.stat().st_mode & stat.S_IXUSR
    finally:
        program.unlink(missing_ok=True)


def test_two_programs_of_one_name_are_refused_and_stay_as_they_are(workdir: Path, tmp_path: Path) -> None:
    programs = [tmp_path / "one" / "kubelet", tmp_path / "two" / "kubelet"]
    for program in programs:
        program.parent.mkdir()
        program.write_text(str(program))
    with pytest.raises(ConfigError, match="another one is called kubelet"):
        prepared(workdir, programs)
    assert [program.read_text() for program in programs] == [str(program) for program in programs]


def test_a_missing_program_and_a_missing_source_are_named(workdir: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"/no/program: there is no such file\nRemedy: run `k3s-sandbox provision`"
    ):
        prepared(workdir, [Path("/no/program")])
    with pytest.raises(ConfigError, match="the bind of /no/source to /srv: /no/source does not exist"):
        prepared(workdir, binds=[Bind(Path("/no/source"), "/srv")])
    assert list(workdir.iterdir()) == []


def test_a_bind_on_a_folder_that_does_not_exist_is_refused_rather_than_made(
    workdir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="/usr/k3s-sandbox-none does not exist"):
        prepared(workdir, binds=[Bind(tmp_path, "/usr/k3s-sandbox-none")])
    plan = prepared(workdir, binds=[Bind(tmp_path, f"{STATE_DIR}/made-for-it")])
    assert f"{STATE_DIR}/made-for-it" in {bind.target for bind in plan.binds}


def test_a_tree_is_copied_with_its_links_and_without_what_is_missing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("x")
    (source / "broken").symlink_to("nowhere")
    layout._copy(source, tmp_path / "target")
    layout._copy(tmp_path / "missing", tmp_path / "nothing")
    assert (tmp_path / "target/sub/file").read_text() == "x"
    assert (tmp_path / "target/broken").readlink() == Path("nowhere")
    assert not (tmp_path / "nothing").exists()


def test_var_can_be_a_part_of_the_root(tmp_path: Path) -> None:
    plan = layout.plan(tmp_path, [], one_root=True)
    layout.prepare(plan, tmp_path, hostname="n")
    assert not [bind for bind in plan.binds if bind.target == "/var"]
    state = layout.below_var(tmp_path, "/var/lib/k3s-sandbox")
    assert state.is_dir()
    assert state.resolve().is_relative_to(plan.rootfs.resolve())
    config = oci.config(plan, argv=[], hostname="n", netns="x")
    assert config["root"]["readonly"] is False
    assert "/var" not in [mount["destination"] for mount in config["mounts"]]
