"""System packages: detected by the programs and files that are needed of them, installed through apt."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import shutil
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.errors import MissingCapability, ProvisionError
from pytest_k3s_sandbox.toolchain.process import run_shown
from pytest_k3s_sandbox.toolchain.progress import Progress, Work, for_terminal

SYSTEM_FOLDERS = "/usr/sbin:/sbin:/usr/bin:/bin"
PT_INTERP = 3
APT_SECONDS = 120
"""How long apt waits for another package manager to end."""


@dataclass(frozen=True)
class SystemPackage:
    """A program or library of the operating system.

    Attributes:
        name: The name of the program or library.
        apt: The packages of Debian and Ubuntu that have it.
        why: The part of the project that needs it.
        present: Tells whether it is there, given the environment.
    """

    name: str
    apt: tuple[str, ...]
    why: str
    present: Callable[[Mapping[str, str]], bool]


def has_library(name: str) -> bool:
    """Tell whether a shared library can be loaded, by the name that ``-l`` takes."""
    found = ctypes.util.find_library(name)
    if found is None:
        return False
    try:
        ctypes.CDLL(found)
    except OSError:
        return False
    return True


def which(name: str, environ: Mapping[str, str]) -> str | None:
    """Return where a system program is; PATH of a plain login lacks the sbin folders."""
    return shutil.which(name, path=f"{environ.get('PATH', '')}:{SYSTEM_FOLDERS}")


def is_static(path: Path) -> bool:
    """Tell whether an ELF64 executable needs no dynamic loader (elf(5): no PT_INTERP)."""
    try:
        data = path.read_bytes()
        if data[:5] != b"\x7fELF\x02":
            return False
        offset = struct.unpack_from("<Q", data, 32)[0]
        size, count = struct.unpack_from("<HH", data, 54)
        kinds = [struct.unpack_from("<I", data, offset + size * index)[0] for index in range(count)]
    except (OSError, struct.error):
        return False
    return PT_INTERP not in kinds


def static_busybox(environ: Mapping[str, str]) -> Path | None:
    """Return a statically linked busybox, or None."""
    found = which("busybox", environ)
    return Path(found) if found and is_static(Path(found)) else None


def can_compile(environ: Mapping[str, str]) -> bool:
    """Tell whether a C program can be compiled and linked, dynamically and statically."""
    compiler = which("gcc", environ)
    if compiler is None:
        return False
    source = b"#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n"
    return all(
        subprocess.run(
            [compiler, *static, "-x", "c", "-", "-o", "/dev/null"],
            input=source,
            capture_output=True,
            check=False,
        ).returncode
        == 0
        for static in ([], ["-static"])
    )


def has_certificates(environ: Mapping[str, str]) -> bool:
    """Tell whether there are root certificates, where OpenSSL or Go look for them."""
    paths = ssl.get_default_verify_paths()
    named = [environ.get("SSL_CERT_FILE"), paths.cafile, "/etc/ssl/certs/ca-certificates.crt"]
    return any(name and Path(name).is_file() for name in named)


RUN = (
    SystemPackage("ip", ("iproute2",), "the sandbox's network", lambda env: which("ip", env) is not None),
    SystemPackage("iptables", ("iptables",), "the kubelet", lambda env: which("iptables", env) is not None),
    SystemPackage(
        "static busybox", ("busybox-static",), "the test image", lambda env: static_busybox(env) is not None
    ),
)
"""The packages for a cluster."""

_COMPARED = "comparing the interceptor with it"
TRACERS = (
    SystemPackage("strace", ("strace",), _COMPARED, lambda env: which("strace", env) is not None),
    SystemPackage("proot", ("proot",), _COMPARED, lambda env: which("proot", env) is not None),
)
"""Other tracers: only the interceptor's own tests and its benchmark run them."""


def _on_path(program: str) -> Callable[[Mapping[str, str]], bool]:
    return lambda environ: which(program, environ) is not None


def of_program(name: str, package: str) -> SystemPackage:
    """Return the distribution's package of a program under test.

    Args:
        name: The program.
        package: Its package.
    """
    return SystemPackage(name, (package,), "a cluster", _on_path(name))


CGROUP_READERS = (
    SystemPackage("cgget", ("cgroup-tools",), "experiment 07, which reads its cgroups", _on_path("cgget")),
    SystemPackage("lxcfs", ("lxcfs",), "comparing the FUSE cgroupfs with it", _on_path("lxcfs")),
)
"""Programs that read cgroups: only the cgroupfs' experiment and its benchmark run them."""

TESTS = (
    SystemPackage(
        "libseccomp.so.2",
        ("libseccomp2",),
        "the project's own tests, which compare the interceptor's filter with its",
        lambda _: has_library("seccomp"),
    ),
    SystemPackage(
        "chromium",
        ("chromium",),
        "the project's own tests of the report's page",
        lambda env: which("chromium", env) is not None,
    ),
)
"""The additional packages for the project's own tests."""

COMPILER = SystemPackage("C compiler", ("gcc", "libc6-dev"), "building kine and runc", can_compile)
CERTIFICATES = SystemPackage(
    "root certificates", ("ca-certificates",), "fetching Go modules", has_certificates
)


def missing_packages(
    packages: Iterable[SystemPackage] = RUN, environ: Mapping[str, str] = os.environ
) -> list[SystemPackage]:
    """Return those of the packages that are not there."""
    return [package for package in packages if not package.present(environ)]


def install_command(packages: Iterable[SystemPackage]) -> str:
    """Return what to type on Debian and Ubuntu to get the packages."""
    names = " ".join(name for package in packages for name in package.apt)
    return f"apt-get update && apt-get install -y {names}"


def ensure_system_packages(
    packages: Iterable[SystemPackage] = RUN,
    *,
    environ: Mapping[str, str] = os.environ,
    progress: Progress | None = None,
    log: Path = Path("/var/log/k3s-sandbox-apt.log"),
) -> list[SystemPackage]:
    """Install missing system packages; do nothing when all are there.

    Args:
        packages: The needed packages.
        environ: The environment, for PATH.
        progress: Who is told how it goes.
        log: The file for apt's output.

    Returns:
        The installed packages.

    Raises:
        MissingCapability: Something is missing, and this machine has no apt or we are not root.
        ProvisionError: apt failed.
    """
    missing = missing_packages(packages, environ)
    if not missing:
        return []
    names = ", ".join(f"{package.name} (for {package.why})" for package in missing)
    apt = which("apt-get", environ)
    if apt is None:
        raise MissingCapability(
            f"missing on this machine: {names}",
            cause="no apt-get to install it with",
            remedy="install what your distribution calls these: "
            + " ".join(name for package in missing for name in package.apt),
        )
    if os.geteuid() != 0:
        raise MissingCapability(
            f"missing on this machine: {names}",
            cause="not root",
            remedy=f"sudo sh -c '{install_command(missing)}'",
        )
    wanted = [name for package in missing for name in package.apt]
    quiet = {**environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-q", "-y", "-o", f"DPkg::Lock::Timeout={APT_SECONDS}"]
    what = f"installing {' '.join(wanted)}"
    with Work(progress or for_terminal(), what) as work:
        # A repository of the user's that does not answer fails the update, but not what follows.
        with contextlib.suppress(ProvisionError):
            run_shown([apt, *options, "update"], work=work, log=log, what=what, environ=quiet)
        install = [apt, *options, "install", "--no-install-recommends", *wanted]
        run_shown(install, work=work, log=log, what=what, environ=quiet)
    still = missing_packages(missing, environ)
    if still:
        raise ProvisionError(
            f"still missing after apt-get install: {', '.join(package.name for package in still)}",
            remedy=install_command(still),
            log=log,
        )
    return missing
