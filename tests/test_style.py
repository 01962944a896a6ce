"""One home for how figures look and are written; both rooms that draw use it."""

import ast
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from flatbench.report import style

PACKAGE = Path(style.__file__).parents[1]


def figure():
    made = Figure(figsize=(2, 1))
    made.add_subplot().plot([1, 2, 4])
    return made


def test_a_figure_is_written_alike_in_every_format_without_date_or_version(tmp_path):
    first = style.write_all(figure(), tmp_path / "a", "x.1-spectrum")
    again = style.write_all(figure(), tmp_path / "b", "x.1-spectrum")
    assert [p.name for p in first] == ["x.1-spectrum.png", "x.1-spectrum.svg"]
    for one, other, opening in zip(first, again, (b"\x89PNG", b"<?xml"), strict=True):
        content = one.read_bytes()
        assert content.startswith(opening)
        assert content == other.read_bytes()
        assert b"dc:date" not in content
        assert b"Software" not in content
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [p.name for p in first]


@pytest.mark.parametrize(("name", "suffix"), [("a.gif", "gif"), ("a", ""), ("a.pdf", "pdf")])
def test_a_suffix_that_is_neither_leaves_no_file(tmp_path, name, suffix):
    with pytest.raises(ValueError, match=f"suffix must be one of png, svg, got '{suffix}'"):
        style.write(figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    style.write(figure(), path)
    before, bad = path.read_bytes(), figure()
    bad.axes[0].set_title("$x^{$")
    with pytest.raises(ValueError, match="x"):
        style.write(bad, path)
    assert path.read_bytes() == before


def test_shades_rise_in_lightness_and_end_before_they_are_too_pale():
    lightness = style.shades(5)[:, :3] @ [0.299, 0.587, 0.114]  # as a grey printer has it
    assert (np.diff(lightness) > 0.05).all()
    assert lightness[-1] < 0.7


def test_no_other_module_sets_matplotlib_up_or_saves_a_figure():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "report" and path.stem == "style":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"savefig", "rcParams", "colormaps"}, path
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not texts & {"svg.hashsalt", "cividis"}, path
