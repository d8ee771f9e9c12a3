"""Run a program behind a seccomp filter that lets everything pass: ``python -m ... CMD``.

Without a tracer and rules, only the kernel's own cost of a filter remains. No other tracer can cost less.
"""

from __future__ import annotations

import os
import sys

from pytest_k3s_sandbox.layers.interceptor import filter as seccomp


def main() -> None:
    """Load the filter and become the program that the arguments name."""
    seccomp.load(seccomp.packed(seccomp.build({})))
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - running the program without a shell is the purpose


if __name__ == "__main__":
    main()
