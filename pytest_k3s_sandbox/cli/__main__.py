"""``python -m pytest_k3s_sandbox.cli``."""

from pytest_k3s_sandbox.cli.main import main

main()
