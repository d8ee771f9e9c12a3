"""How Sphinx builds the documentation: ``sphinx-build -W docs OUT``, or ``tox -e docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from pytest_k3s_sandbox import __version__

project = "pytest-k3s-sandbox"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
exclude_patterns = ["_build"]
html_theme = "furo"  # asks nobody: no fonts, scripts or styles from elsewhere
html_title = f"pytest-k3s-sandbox {__version__}"
html_show_copyright = False
html_copy_source = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else every field of a record would be described twice
