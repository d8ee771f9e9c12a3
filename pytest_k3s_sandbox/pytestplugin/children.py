"""End forked child processes that return from the test.

Such a child would continue as a second pytest: it would report tests, run the next tests and tear down
fixtures. Without a sandbox in use, the plugin does not touch it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path

import _pytest
import pluggy
import pytest

import pytest_k3s_sandbox
from pytest_k3s_sandbox.support import forks

HIDDEN = tuple(f"{Path(module.__file__ or '').parent}/" for module in (_pytest, pluggy, pytest_k3s_sandbox))
"""The folders whose frames a traceback omits: those between pytest's start and the test."""


class Children:
    """Hooks that end forked processes."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        """End processes that the setup of a fixture forked."""
        with ended_here(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """End processes that the test forked."""
        with ended_here(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """End processes that the teardown of a fixture forked."""
        with ended_here(item.nodeid):
            return (yield)


@contextlib.contextmanager
def ended_here(what: str) -> Iterator[None]:
    """End a process that the enclosed code forked, if the process inherited resources of its parent.

    pytest-forked forks before the enclosed code, so its processes run the whole test.

    Args:
        what: The name of the enclosed code, for the message.
    """
    owner = forks.Owner()
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        if owner.mine or not forks.inherited():
            raise
        error = raised
    if not owner.mine and forks.inherited():
        _exit(what, error)


def _exit(what: str, error: BaseException | None) -> None:
    """End this process at once, without exit handlers: they belong to its parent."""
    code = 0
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = error.code or 0
    elif error is not None:
        code = 1
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith(HIDDEN)
        ]
        text = "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)])
        terminal = sys.__stderr__
        if terminal is not None:
            terminal.write(
                f"k3s-sandbox: process {os.getpid()}, which {what} forked, ends with the test and not as a "
                f"second pytest; end it by os._exit():\n{text}"
            )
            terminal.flush()
    os._exit(code)
