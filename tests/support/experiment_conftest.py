"""The text of a conftest that knows the markers of experiments, as theirs does."""

MARKS = """
from pathlib import Path

from pytest_k3s_sandbox.pytestplugin import experiment_markers

def pytest_configure(config):
    experiment_markers.register(config)

def pytest_collection_modifyitems(config, items):
    experiment_markers.apply(config, items, Path(__file__).parent)
"""
"""What the conftest of the experiments does."""
