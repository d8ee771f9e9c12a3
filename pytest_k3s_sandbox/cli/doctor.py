"""Checks of this machine, a line for each, with its remedy."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability, StartError
from pytest_k3s_sandbox.sandbox import gateway, groups, machine
from pytest_k3s_sandbox.sandbox.limits import Room, Wanted
from pytest_k3s_sandbox.toolchain import golang, packages, probes
from pytest_k3s_sandbox.toolchain.keys import architecture
from pytest_k3s_sandbox.toolchain.resolve import Toolchain

LEAST_PYTHON = (3, 11)
BUILD_BYTES = 8_000_000_000
RUN_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Check:
    """One answer.

    Attributes:
        name: The checked thing.
        ok: Whether it is as it should be.
        required: Whether the main job cannot run otherwise.
        detail: The finding.
        remedy: The remedy if it is not ok.
    """

    name: str
    ok: bool
    required: bool
    detail: str
    remedy: str = ""


def render(checks: Iterable[Check]) -> str:
    """Return the checks as text, a line each: ``ok``, ``FAIL`` (required) or ``note``."""
    listed = list(checks)
    width = max((len(check.name) for check in listed), default=0)
    lines = []
    for check in listed:
        mark = "ok  " if check.ok else "FAIL" if check.required else "note"
        remedy = f" -> {check.remedy}" if check.remedy and not check.ok else ""
        lines.append(f"{mark}  {check.name:<{width}}  {check.detail}{remedy}")
    return "\n".join(lines)


def failed(checks: Iterable[Check]) -> list[Check]:
    """Return the required checks that are not ok."""
    return [check for check in checks if check.required and not check.ok]


def _machine() -> list[Check]:
    try:
        architecture()
        arch = Check("architecture", ok=True, required=True, detail=platform.machine())
    except MissingCapability as error:
        arch = Check("architecture", ok=False, required=True, detail=error.what, remedy=error.remedy or "")
    return [
        arch,
        Check(
            "root",
            ok=os.geteuid() == 0,
            required=True,
            detail=f"uid {os.geteuid()}",
            remedy="run it as root (sudo -E), sandboxes need mounts and namespaces",
        ),
        Check(
            "kind host",
            ok=True,
            required=False,
            detail="is not a boundary: a privileged process in it is root of this machine (docs/security.md)",
        ),
        Check(
            "Python",
            ok=sys.version_info >= LEAST_PYTHON,
            required=True,
            detail=platform.python_version(),
            remedy="use Python 3.11 or later",
        ),
    ]


def _kernel() -> list[Check]:
    fuse = probes.can_open("/dev/fuse")
    root = probes.filesystem("/")
    try:
        mode = probes.cgroup_mode(Path("/proc/mounts").read_text(encoding="utf-8"))
    except OSError as error:
        mode = f"unknown ({error})"

    def allowed(name: str, answer: bool, remedy: str) -> Check:
        return Check(name, ok=answer, required=True, detail="allowed" if answer else "refused", remedy=remedy)

    container = "in a container, start it with --privileged"
    return [
        Check(
            "/dev/fuse",
            ok=fuse is None,
            required=True,
            detail=fuse or "can be opened",
            remedy=f"modprobe fuse; {container} or --device /dev/fuse",
        ),
        allowed("network namespace", probes.can_unshare("net"), f"needs CAP_SYS_ADMIN; {container}"),
        allowed("mount namespace", probes.can_unshare("mount"), f"needs CAP_SYS_ADMIN; {container}"),
        allowed(
            "ptrace", probes.can_trace(), f"sysctl kernel.yama.ptrace_scope must be under 3; {container}"
        ),
        allowed("seccomp filter", probes.can_filter(), "the kernel needs CONFIG_SECCOMP_FILTER"),
        Check("control groups", ok=True, required=False, detail=mode),
        _isolation(),
        _limits(),
        Check(
            "root filesystem",
            ok=True,
            required=False,
            detail=root + (", as in gVisor" if "9p" in root else ""),
        ),
    ]


def _isolation() -> Check:
    """Check which parts of this machine programs in a sandbox could reach."""
    try:
        why = gateway.load(
            gateway.rules("192.0.2.1", "192.0.2.2", ())
        )  # addresses of RFC 5737, for documents
    except StartError as error:
        why = str(error)
    isolated = gateway.FILTERED if why is None else gateway.ROUTED
    return Check(
        "network isolation",
        ok=why is None,
        required=False,
        detail=f"{gateway.MEANING[isolated]}{'' if why is None else f' ({why})'}",
        remedy="install iptables, on a kernel with its modules; inside gVisor there is none",
    )


def _limits() -> Check:
    """Show the limits of a sandbox on this machine."""
    places = groups.find()
    folder = machine.home()
    while not folder.exists():
        folder = folder.parent
    applies = Wanted().on(Room.found(folder, places.around))
    lacking = places.lacking or {}
    why = "; ".join(f"no limit of {groups.NAMES[name]}: {why}" for name, why in lacking.items())
    return Check(
        "limits of a sandbox",
        ok=not lacking,
        required=False,
        detail=f"{applies}{'' if not why else f' ({why})'}",
        remedy="start a container with --privileged; or limit this container, for example by "
        "`docker run --memory` or `systemd-run -p MemoryMax=`",
    )


def _system(toolchain: Toolchain) -> list[Check]:
    checks = []
    for package in packages.RUN:
        there = package.present(toolchain.environ)
        checks.append(
            Check(
                package.name,
                ok=there,
                required=True,
                detail=("there" if there else "missing") + f", for {package.why}",
                remedy=packages.install_command([package]) + ", or k3s-sandbox provision",
            )
        )
    return checks


def _programs(toolchain: Toolchain) -> tuple[list[Check], list[str]]:
    checks, unavailable = [], []
    for name, pin in toolchain.pins.programs.items():
        try:
            program = toolchain.find(name)
        except ConfigError as error:
            checks.append(
                Check(
                    name,
                    ok=False,
                    required=True,
                    detail=f"{error.what}: {error.cause}",
                    remedy=error.remedy or "",
                )
            )
            continue
        if program:
            checks.append(
                Check(
                    name,
                    ok=True,
                    required=False,
                    detail=f"{program.version} from {program.origin}, {program.path}",
                )
            )
            continue
        unavailable.append(name)
        why = "; ".join(toolchain.why(name))
        unpinned = pin.build is None and pin.release is not None and pin.release.sha256 is None
        how = "to be downloaded or built" if pin.build else "optional, download only"
        if pin.package:
            how = f"optional, to be downloaded, or the distribution's package {pin.package}"
        checks.append(
            Check(
                name,
                ok=False,
                required=False,
                detail=f"{how} ({why})",
                remedy=f"k3s-sandbox provision {name}" + (" --unpinned-releases" if unpinned else ""),
            )
        )
    return checks, unavailable


def _building(toolchain: Toolchain, unavailable: list[str]) -> list[Check]:
    builds = [pin for name in unavailable if (pin := toolchain.pins.programs[name]).build]
    least = max((golang.required(pin.build) for pin in builds if pin.build), default=())
    go = golang.find_go(toolchain.pins.go, least, toolchain.cache, toolchain.environ)
    pinned = toolchain.pins.go
    found = f"{'.'.join(map(str, go.version))}, {go.path}" if go else "none that is recent enough"
    compiles = packages.can_compile(toolchain.environ)
    free = probes.free_bytes(toolchain.cache.root)
    wanted = BUILD_BYTES if builds else RUN_BYTES
    return [
        Check(
            "Go",
            ok=go is not None or not builds,
            required=False,
            detail=found if builds or go else "none, and none is needed",
            remedy=f"{pinned.package} {pinned.version} is installed into the cache from the Python index",
        ),
        Check(
            "C compiler",
            ok=compiles or not builds,
            required=False,
            detail="works" if compiles else "missing" + ("" if builds else ", and not needed"),
            remedy=packages.install_command([packages.COMPILER]) + ", or k3s-sandbox provision",
        ),
        Check(
            "disk space",
            ok=free >= wanted,
            required=True,
            detail=f"{free / 1e9:.1f} GB free for {toolchain.cache.root}, {wanted / 1e9:.0f} GB wanted",
            remedy="make room, or name another folder by K3S_SANDBOX_CACHE",
        ),
    ]


def checks(toolchain: Toolchain | None = None) -> list[Check]:
    """Ask everything; nothing is downloaded, built or changed.

    Args:
        toolchain: Where programs are looked for; by default the user's.
    """
    used = toolchain or Toolchain()
    programs, unavailable = _programs(used)
    return [*_machine(), *_kernel(), *_system(used), *programs, *_building(used, unavailable), *_strangers()]


def _strangers() -> list[Check]:
    """Name foreign files among the sandboxes' folders, which nothing removes."""
    return [
        Check(
            "sandboxes' folder",
            ok=False,
            required=False,
            detail=f"{path} is not ours, and is left alone: {reason}",
            remedy=f"if it is not needed: rm -r {shlex.quote(str(path))}",
        )
        for path, reason in machine.strangers().items()
    ]
