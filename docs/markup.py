"""A Sphinx extension: formulas as MathML, and GitHub's markdown of the published reports.

Browsers draw MathML by themselves, so that no page loads a script from elsewhere.
"""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator


class Details(nodes.General, nodes.Element):
    """What a reader unfolds."""


class Fold(SphinxDirective):
    """``{fold} Title``: what it holds is folded away until the title is clicked."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        node = Details(title=self.arguments[0])
        self.set_source_info(node)
        self.state.nested_parse(self.content, self.content_offset, node)
        return [node]


def _open_details(translator: HTML5Translator, node: Details) -> None:
    translator.body.append(translator.starttag(node, "details"))
    translator.body.append(f"<summary>{translator.encode(node['title'])}</summary>\n")


def _close_details(translator: HTML5Translator, node: Details) -> None:
    translator.body.append("</details>\n")


def as_myst(text: str) -> str:
    """Return a report's text with its folds and anchors as MyST has them.

    On a page a heading ends the HTML element that it stands in, so a fold written in HTML would
    end at its first heading.
    """
    text = re.sub(r'^<a id="([^"]+)"></a>$', r"(\1)=", text, flags=re.MULTILINE)
    text = re.sub(r"^<details><summary>(.*)</summary>$", r"::::{fold} \1", text, flags=re.MULTILINE)
    return re.sub(r"^</details>$", "::::", text, flags=re.MULTILINE)


def _read(_: Sphinx, name: str, source: list[str]) -> None:
    if name.startswith("results/"):
        folder, what = name.split("/")[1:]
        source[0] = f"# {folder}: {what}\n\n{as_myst(source[0])}"


def _escape(
    _: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    r"""Write \|w\| for the |w| of a docstring, which would be a substitution in its markup."""
    lines[:] = [re.sub(r"(?<!\|)\|(\w+)\|(?!\|)", r"\|\1\|", line) for line in lines]


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive, the reading of reports and the formulas."""
    app.add_directive("fold", Fold)
    app.add_node(Details, html=(_open_details, _close_details))
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _escape)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
