"""Files to hide in the folders that a sandbox shows: settings, which may hold tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FILES = (
    "pip.conf",  # pip's user guide, "Configuration files": the site's; it may name an index with its password
    "uv.toml",
    ".netrc",
    "_netrc",
    ".pypirc",
    ".npmrc",
    ".env",
    ".git-credentials",
)
"""Files that are hidden directly below a folder that is shown."""

FOLDERS = (".aws", ".azure", ".config", ".docker", ".git", ".gnupg", ".kube", ".ssh")
"""Folders that are hidden there: where people keep a project and its environment in one folder."""

MACHINE = ("/usr/local/etc", "/usr/local/src", "/usr/src")
"""Folders of the machine that nothing inside needs; hidden unless they are empty."""


def hidden(shown: Iterable[Path]) -> list[Path]:
    """Return the files and folders to hide, each by its own path.

    Args:
        shown: The folders of the machine that a sandbox shows under the same path.
    """
    roots = [root for root in dict.fromkeys(shown) if root.is_dir()]
    found = [root / name for root in roots for name in (*FILES, *FOLDERS)]
    found += [Path(path) for path in MACHINE]
    kept: dict[Path, None] = {}
    for path in found:
        real = _real(path)
        if real is not None and any(real.is_relative_to(root.resolve()) for root in roots):
            kept[real] = None
    return list(kept)


def _real(path: Path) -> Path | None:
    """Return the file or folder to hide for a path, behind links; None where nothing exists."""
    try:
        real = path.resolve(strict=True)
        there = real.is_file() or (real.is_dir() and any(real.iterdir()))
    except (OSError, RuntimeError):  # it is not there, or its links go in a circle
        return None
    return real if there else None
