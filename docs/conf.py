"""The documentation site: ``make docs`` builds it from the Markdown pages of the repository and from docstrings."""

from __future__ import annotations

from sphinx.application import Sphinx

import torch_gfo

project = "torch_gfo"
author = "torch_gfo contributors"
copyright = author
version = release = torch_gfo.__version__

# The whole repository is the source, so that links between its pages are the same here and where the code is hosted.
root_doc = "docs/README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**", "benchmarks/*.md"]
exclude_patterns = [".*", "build", "data", "examples", "runs", "tests", "torch_gfo"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what an argument may be
napoleon_use_ivar = True  # attributes that a docstring describes are not described again
pygments_style = "friendly"
highlight_language = "text"  # blocks that do not say what they are hold equations

html_theme = "furo"
html_title = f"torch_gfo {version}"
html_extra_path = ["site"]  # index.html, which leads to the first page
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"light_css_variables": {"code-font-size": "80%"}}
html_show_sphinx = False
html_show_sourcelink = False

# Where the code is hosted, docs/README.md is read as it is; here it is the first page, and has the navigation.
NAVIGATION = """
```{toctree}
:hidden:

Overview <../README>
quickstart
how_to_choose
how_it_works
evaluation
gradient
torch_compatibility
callbacks
examples
```

```{toctree}
:hidden:
:caption: Algorithms
:glob:

algorithms/*
```

```{toctree}
:hidden:
:caption: Measurements

mnist
benchmarks
performance
scaling
```

```{toctree}
:hidden:
:caption: Tables
:glob:

../benchmarks/*
```

```{toctree}
:hidden:
:caption: Reference

api
testing
../CONTRIBUTING
../CHANGELOG
```
"""


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Appends the navigation to the first page."""
    if docname == root_doc:
        source[0] += NAVIGATION


def setup(app: Sphinx) -> None:
    """Registers the above."""
    app.connect("source-read", add_navigation)
