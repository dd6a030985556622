"""The documentation site: `make docs` builds it without a network; warnings are errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "src"), str(ROOT / "tests" / "support")]

import site_pages  # noqa: E402 - found on the path above
from mended_torchvision import sitecustomize as sitecustomize  # noqa: E402 - for a torchvision of another build

import eenet  # noqa: E402

project = "eenet"
author = "the eenet contributors"
copyright = "the eenet contributors, Apache-2.0"  # noqa: A001 - the name that Sphinx reads
version = release = eenet.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
nitpicky = True
default_role = "code"  # docstrings put names in single backticks
# Types of other libraries, whose indexes would need a network, and words of prose in the types of parameters.
nitpick_ignore_regex = [
    ("py:.*", r"(?!eenet).*"),
    ("py:.*", r"eenet\.(.*\.)?_.*"),
    ("py:class", r"eenet\.(profiling\.StageProfile|tasks\.Array)"),
]
suppress_warnings = ["config.cache"]
exclude_patterns = ["_build", "reference/api.md", "sg_execution_times.rst", "**/sg_execution_times.rst"]

html_theme = "pydata_sphinx_theme"
html_title = f"eenet {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_math_renderer = "mathml"  # MathJax would need a network

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

numpydoc_show_class_members = False
numpydoc_xref_param_type = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

linkcheck_timeout = 20
linkcheck_retries = 2

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["tutorials"],
    "filename_pattern": r"/plot_",
    "subsection_order": [
        "../examples/quickstart",
        "../examples/advanced",
        "../examples/articles",
    ],
    "within_subsection_order": "FileNameSortKey",
    "show_api_usage": False,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "plot_gallery": os.environ.get("EENET_DOCS_RUN", "1") == "1",
    "abort_on_example_error": True,
    "matplotlib_animations": False,
    "reset_modules": ("matplotlib",),
}


def setup(app: Sphinx) -> None:
    """The reference pages, equations without a network, and links that hold in the repository and on the site."""
    site_pages.setup(app)
