"""The package's public names: there, and imported only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pytest_k3s_sandbox


@pytest.mark.parametrize("name", pytest_k3s_sandbox.__all__)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(pytest_k3s_sandbox, name).__name__ == name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Wish'"):
        pytest_k3s_sandbox.Wish  # noqa: B018 - the access is the test


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    code = "import sys, pytest_k3s_sandbox; print([m for m in sys.modules if m.startswith('pytest_k3s_')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pytest_k3s_sandbox']"
