"""The files that a sandbox shows, as pure descriptions; each kind of sandbox turns them into mounts."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Bind
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.hidden import hidden
from pytest_k3s_sandbox.sandbox.inside import InsidePath

LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
"""The merged-/usr links (file-hierarchy(7)) of every sandbox's root."""

MANUAL = "/man/"
"""A part of the paths of manual pages: hier(7)."""
ETC_FILES = (
    "alternatives",
    "ethertypes",
    "fuse.conf",
    "group",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "nsswitch.conf",
    "passwd",
    "protocols",
    "services",
)
"""Copies from the machine's /etc: files that programs need to start, without secrets."""

TMPFS = ("/tmp", "/run")  # noqa: S108 - paths inside the sandbox
CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP)
"""Errors of link(2) after which a copy does."""

NOTHING = "nothing"
"""The folder of a sandbox's folder with an empty file and an empty folder."""

SHELL_PATH = f"{BIN_DIR}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Layout:
    """A sandbox's file system.

    Attributes:
        rootfs: The folder on the machine that becomes the root.
        binds: Everything shown inside, parents before children.
        programs: The programs under test on the machine.
        tmpfs: Paths inside that get a tmpfs.
        one_root: Whether /var is a part of the root, which is writable then, and no mount of its own.
        copied: Whether the programs are copied, and not linked to the files of the cache.
    """

    rootfs: Path
    binds: tuple[Bind, ...]
    programs: tuple[Path, ...] = ()
    tmpfs: tuple[str, ...] = field(default=TMPFS)
    one_root: bool = False
    copied: bool = False


def python_binds() -> list[Bind]:
    """Return the binds by which this Python, its packages and this project run inside."""
    package = Path(__file__).parents[1]
    folders = {Path(sys.base_prefix), Path(sys.prefix), package}
    return [Bind(folder, str(folder)) for folder in folders]


def plan(
    workdir: Path,
    programs: Iterable[Path],
    extra: Sequence[Bind] = (),
    *,
    one_root: bool = False,
    copied: bool = False,
) -> Layout:
    """Plan the file system of a sandbox.

    Args:
        workdir: The sandbox's folder on the machine; its ``var`` is the writable part.
        programs: The programs under test; each appears in ``BIN_DIR`` by its name.
        extra: Further binds.
        one_root: Whether /var is a part of the root; see :class:`Layout`.
        copied: Whether the programs are copied; likewise.

    Returns:
        The layout, its binds sorted so that parents come before children.
    """
    binds = [
        Bind(Path("/usr"), "/usr"),
        Bind(workdir / "etc", "/etc"),
        *([] if one_root else [Bind(workdir / "var", "/var", writable=True)]),
        *python_binds(),
        *hiding_binds(workdir),
        Bind(workdir / "bin", BIN_DIR),
        *extra,
    ]
    return Layout(workdir / "rootfs", drop_covered(binds), tuple(programs), one_root=one_root, copied=copied)


def hiding_binds(workdir: Path) -> list[Bind]:
    """Return empty binds over files in the shown folders that the inside must not read.

    Args:
        workdir: The sandbox's folder, which has an empty file and an empty folder for that.
    """
    shown = [Path("/usr"), *(bind.source for bind in python_binds())]
    return [
        Bind(workdir / NOTHING / ("folder" if path.is_dir() else "file"), str(path)) for path in hidden(shown)
    ]


def below_var(workdir: Path, inside: str) -> InsidePath:
    """Return where a path below /var of a sandbox is on the machine, to read it there.

    Args:
        workdir: The sandbox's folder.
        inside: The path inside.

    Raises:
        ValueError: It is not below /var.
    """
    files = shared(workdir)
    return InsidePath(files.root / files.relative(inside))


def shared(workdir: Path) -> Beneath:
    """Return the files that a sandbox and the machine share, those below /var inside.

    Args:
        workdir: The sandbox's folder, which the inside cannot write.
    """
    # With one root, /var is a folder of it, which the inside may replace, too.
    return Beneath(workdir / "rootfs" if (workdir / "var").is_symlink() else workdir)


def control(workdir: Path) -> Path:
    """Return the folder of files that only the machine uses: keys, kubeconfig, logs of its own programs.

    Nothing that runs inside can read or write it.

    Args:
        workdir: The sandbox's folder.
    """
    return workdir / "control"


def drop_covered(binds: Sequence[Bind]) -> tuple[Bind, ...]:
    """Sort binds parents first, without those that a parent already shows.

    Args:
        binds: Binds in any order.

    Returns:
        The binds that are needed, as few as show the same; of several with one target the last wins.
    """
    kept: list[Bind] = []
    by_target = {bind.target: bind for bind in binds}
    for bind in sorted(by_target.values(), key=lambda bind: PurePosixPath(bind.target).parts):
        over = [parent for parent in kept if PurePosixPath(bind.target).is_relative_to(parent.target)]
        if not over or not _shows(over[-1], bind):  # a nearer parent hides what a farther one would show
            kept.append(bind)
    return tuple(kept)


def _shows(parent: Bind, bind: Bind) -> bool:
    below = PurePosixPath(bind.target).relative_to(parent.target)
    return bind.writable == parent.writable and bind.source == parent.source / below


def prepare(layout: Layout, workdir: Path, *, hostname: str) -> None:
    """Create the root, its mount points, /etc and the state folder on the machine.

    Args:
        layout: What :func:`plan` returned for ``workdir``.
        workdir: The sandbox's folder.
        hostname: The sandbox's name, for /etc/hostname and /etc/hosts.

    Raises:
        ConfigError: A program or the source of a bind does not exist, or two programs have one name.
        OSError: The folder cannot be written.
    """
    _check_sources(layout, workdir)
    root = layout.rootfs
    root.mkdir(parents=True)
    control(workdir).mkdir(mode=0o700)
    if layout.one_root:
        (root / "var").mkdir()
        (workdir / "var").symlink_to(root / "var")
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    state = workdir / "var" / PurePosixPath(STATE_DIR).relative_to("/var")
    for folder in ("lib", "log", "tmp"):
        (workdir / "var" / folder).mkdir(parents=True)
    (workdir / "var" / "run").symlink_to("/run")
    for folder in ("logs", "cni/bin", "cni/net.d", "rancher"):
        (state / folder).mkdir(parents=True)
    (root / "opt").mkdir()
    (root / "opt" / "cni").symlink_to(f"{STATE_DIR}/cni")
    _write_etc(workdir / "etc", hostname)
    _put_programs(layout.programs, workdir / "bin", copied=layout.copied)
    (workdir / NOTHING / "folder").mkdir(parents=True)
    (workdir / NOTHING / "file").touch()
    for target in ("/proc", "/sys", "/dev", "/root", *layout.tmpfs):
        (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for bind in layout.binds:
        point = root / bind.target.lstrip("/")
        if bind.source.is_dir():
            point.mkdir(parents=True, exist_ok=True)
        elif not point.exists():
            point.parent.mkdir(parents=True, exist_ok=True)
            point.touch()


def _check_sources(layout: Layout, workdir: Path) -> None:
    names = Counter(program.name for program in layout.programs)
    for program in layout.programs:
        if not program.is_file():
            raise ConfigError(
                f"the program {program}",
                cause="there is no such file",
                remedy="run `k3s-sandbox provision`",
            )
        if names[program.name] > 1:
            raise ConfigError(f"the program {program}", cause=f"another one is called {program.name}, too")
    for index, bind in enumerate(layout.binds):
        over = [
            parent
            for parent in layout.binds[:index]
            if PurePosixPath(bind.target).is_relative_to(parent.target)
        ]
        # A mount point must exist, or it would be made in the machine's own folder.
        point = over[-1].source / PurePosixPath(bind.target).relative_to(over[-1].target) if over else None
        for path in (bind.source, point):
            if path is not None and not path.is_relative_to(workdir) and not path.exists():
                raise ConfigError(
                    f"the bind of {bind.source} to {bind.target}",
                    cause=f"{path} does not exist",
                    remedy="create it before the sandbox starts",
                )


def _put_programs(programs: Iterable[Path], folder: Path, *, copied: bool = False) -> None:
    """Link the programs into one folder, or copy them: if asked to, or from another file system.

    A program with several names is copied once. Who can write a linked program changes the cache's.

    A bind mount for each would do but for runc, which runs itself from an overlay of
    its folder, and an overlay shows the files below a mount.
    """
    folder.mkdir()
    copies: dict[tuple[int, int], Path] = {}
    for program in programs:
        source, target = program.resolve(), folder / program.name
        try:
            if not copied:
                target.hardlink_to(source)
                continue
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
        status = source.stat()
        known = copies.setdefault((status.st_dev, status.st_ino), target)
        if known is target:
            shutil.copy(source, target)
        else:
            target.hardlink_to(known)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a tree, if it exists; unlike ``copytree`` it fails with the first error as it is.

    Links to manual pages, four of five in Debian's alternatives, are left out: each takes time at
    every start.
    """
    if source.is_symlink():
        if MANUAL not in str(leads_to := source.readlink()):
            target.symlink_to(leads_to)
    elif source.is_dir():
        target.mkdir()
        for child in sorted(source.iterdir()):
            _copy(child, target / child.name)
    elif source.is_file():
        shutil.copy(source, target)


def _write_etc(etc: Path, hostname: str) -> None:
    etc.mkdir()
    for name in ETC_FILES:
        _copy((Path("/etc") / name).resolve(), etc / name)
    (etc / "hostname").write_text(f"{hostname}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost {hostname}\n")
    (etc / "machine-id").write_text(f"{hashlib.sha256(hostname.encode()).hexdigest()[:32]}\n")
    (etc / "resolv.conf").write_text("")
    (etc / "mtab").symlink_to("/proc/mounts")
    # Programs write there: a CNI its configuration, k3s the password of its node.
    for name in ("cni", "rancher"):
        (etc / name).symlink_to(f"{STATE_DIR}/{name}")
