"""Where a toolchain under test runs: fake programs, a fake go, a release server on loopback."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.pins import Pins, Release
from pytest_k3s_sandbox.toolchain.progress import SilentProgress

TOOL, OTHER = "k3sfake-tool", "k3sfake-other"  # names that no machine has
GO = r"""#!/bin/sh
case $1 in
version) echo "go version go%(version)s linux/amd64"; exit ;;
env) echo "$HOME/no-mod"; echo "$HOME/no-build"; exit ;;
esac
printf '%%s\n' "$@" > %(home)s/argv
env > %(home)s/environment
echo run >> %(home)s/runs
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
%(body)s
"""


@dataclass
class Machine:
    """Where a toolchain under test runs."""

    home: Path
    pins: Pins
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """The cache folder; it does not exist at first."""
        return self.home / "cache"

    @property
    def builds(self) -> int:
        """How often the fake go has built."""
        runs = self.home / "runs"
        return len(runs.read_text().splitlines()) if runs.exists() else 0

    @property
    def leftovers(self) -> list[str]:
        """What is in the cache without being an entry."""
        return [path.name for path in self.cache.glob("entries/*tmp*")]

    @property
    def entries(self) -> list[Path]:
        """The complete entries of the cache."""
        return [path for path in self.cache.glob("entries/*") if ".tmp" not in path.name]

    @staticmethod
    def program(version: str = "1.2.3") -> str:
        """Return a program that states its version."""
        return f"#!/bin/sh\necho 'tool version {version}'\n"

    def put(self, name: str, text: str, *, mode: int = 0o755) -> Path:
        """Put a program on PATH."""
        path = self.home / "bin" / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def go(self, body: str | None = None, version: str = "1.24.0") -> None:
        """Put a go on PATH whose build does what ``body`` says; by default it yields both programs."""
        (self.home / "product").write_text(self.program())
        copies = "; ".join(f"cp {self.home}/product $out/{name}" for name in (TOOL, OTHER))
        self.put("go", GO % {"version": version, "home": self.home, "body": copies if body is None else body})

    def toolchain(self) -> Toolchain:
        """Return a toolchain that knows nothing of an earlier one."""
        return Toolchain(environ=self.environ, progress=SilentProgress(), pinned=self.pins)

    def pin(self, **changes: object) -> None:
        """Change both pins."""
        self.pins = replace(
            self.pins,
            programs={name: replace(pin, **changes) for name, pin in self.pins.programs.items()},  # type: ignore[arg-type]  # each test names fields of Pin
        )


@dataclass
class Server:
    """Releases on loopback."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    cut_after: int | None = None
    delay: float = 0.0
    redirects: dict[str, str] = field(default_factory=dict)
    length: str | None = None

    def offer(self, name: str, data: bytes, *, checksum: str | None = None, pinned: bool = False) -> Release:
        """Offer a file, and its checksum as sha256sum writes it."""
        stated = checksum or hashlib.sha256(data).hexdigest()
        self.files[f"/{name}"] = data
        self.files[f"/{name}.sha256"] = f"{'0' * 64}  something-else\n{stated} *dist/{name}\n".encode()
        return Release(
            f"{self.url}/{name}",
            f"{self.url}/{name}.sha256",
            "sha256",
            "1.2.3",
            sha256=hashlib.sha256(data).hexdigest() if pinned else None,
        )

    def asked(self, name: str) -> list[str | None]:
        """Return the Range header of each request for a file."""
        return [wanted for path, wanted in self.requests if path == f"/{name}"]
