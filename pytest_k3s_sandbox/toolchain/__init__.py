"""Getting the programs: environment variable, PATH, cache, release download, Go build.

>>> from pytest_k3s_sandbox.toolchain import Toolchain
>>> Toolchain().get("kubelet").path  # doctest: +SKIP
"""

from pytest_k3s_sandbox.toolchain.packages import ensure_system_packages
from pytest_k3s_sandbox.toolchain.progress import Progress
from pytest_k3s_sandbox.toolchain.resolve import Program, Toolchain

__all__ = ["Program", "Progress", "Toolchain", "ensure_system_packages"]
