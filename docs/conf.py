"""The documentation as a site: ``python -m sphinx -c docs . build/site`` (``tox -e docs``).

The source folder is the repository, so that a link between two files is the same link on a page of
the site as in a checkout, and the published reports are pages where they lie.
"""

from __future__ import annotations

from flatbench import __version__
from flatbench.report.style import DARK, INK, LOOKS, PAPER

project = "flatbench"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docs.markup"]

root_doc = "docs/index"
include_patterns = [
    *("docs/*.md", "docs/results/*.md"),
    *("results/*/report.md", "results/*/candidates.md"),
    *("CHANGELOG.md", "CONTRIBUTING.md"),
]
# Folders that Sphinx need not walk: those of environments have a hundred thousand files.
exclude_patterns = [".*", "build", "dist", "baseline", "results/local", "**/records", "tests"]

nitpicky = True
# Sphinx would need the inventories of these projects, which are on the network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|collections|typing|pathlib|types)\..*"),
    (r"py:obj", r"_\w+"),  # what a docstring tells those who read the code
]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
highlight_language = "none"
default_role = "py:obj"  # what stands in single backticks in a docstring
add_module_names = False
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "flatbench"
html_static_path = ["site/static"]
html_css_files = ["flatbench.css"]
html_js_files = ["sort.js"]
html_extra_path = ["site/root"]  # the way from the top of the site to the first page
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
html_domain_indices = False
html_theme_options = {
    f"{scheme}_css_variables": {
        "color-brand-primary": brand,
        "color-brand-content": brand,
        "color-foreground-primary": ink,
        "color-background-primary": paper,
    }
    for scheme, brand, ink, paper in (
        ("light", LOOKS["adam-2x"].colour, INK, PAPER),
        ("dark", LOOKS["sgd-2x"].colour, DARK[INK], DARK[PAPER]),
    )
}
