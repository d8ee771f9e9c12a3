"""How a layer runs a program of this package inside a sandbox."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

PYTHON: Final = (sys.executable, "-I", "-S")
"""Python without site-packages: the programs need none, and .pth files double its start."""

_ROOT: Final = str(Path(__file__).parents[2])


def argv(package: str, *words: str, leave: str = "sys.exit") -> list[str]:
    """Return the command that runs the ``main`` of a package's ``__main__``.

    Args:
        package: The package's whole name.
        words: The program's arguments.
        leave: What ends the process with main's result: ``os._exit`` does not wait for threads.
    """
    code = (
        "import os, sys; sys.path.append(sys.argv.pop(1)); "
        f"from {package}.__main__ import main; {leave}(main())"
    )
    return [*PYTHON, "-c", code, _ROOT, *words]
