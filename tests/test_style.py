"""One home for how figures look and are written; both rooms that draw use it."""

import ast
import itertools
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from flatbench.report import style

PACKAGE = Path(style.__file__).parents[1]


def figure():
    with mpl.rc_context(style.RC):
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


def test_no_other_module_sets_matplotlib_up_or_saves_a_figure():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "report" and path.stem == "style":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"savefig", "rcParams", "colormaps"}, path
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not texts & {"svg.hashsalt", "cividis"}, path


# --- the palette


def linear(colour):
    """Light of the three channels, from sRGB."""
    channels = np.array(to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2's contrast ratio."""
    lights = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (one, other))
    return lights[1] / lights[0]


def lab(light):
    to_xyz = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    x, y, z = to_xyz @ light / [0.9505, 1, 1.0889]
    f = [np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira & Fernandes 2009, of linear light: sight without one kind of cones.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
NAMED = [look.colour for look in style.LOOKS.values()]
PAPERS = (style.PAPER, style.DARK[style.PAPER])


def distances(sight, colours):
    seen = [lab(np.clip(SIGHTS[sight] @ linear(c), 0, 1)) for c in colours]
    return [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]


@pytest.mark.parametrize("paper", PAPERS)
def test_colours_stand_out_from_white_and_from_dark_paper(paper):
    for colour in (*NAMED, *style.OTHERS, style.GUIDE):
        assert contrast(colour, paper) >= 3, colour


def test_ink_can_be_read_on_both_papers():
    assert contrast(style.INK, style.PAPER) >= 7
    assert contrast(style.DARK[style.INK], style.DARK[style.PAPER]) >= 7


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_can_be_told_apart_with_every_kind_of_sight(sight):
    assert min(distances(sight, NAMED)) > 25
    assert min(distances(sight, (*NAMED, *style.OTHERS))) > 10


def test_the_simulation_of_sight_knows_red_from_green_for_normal_sight_alone():
    pair = ("#c23b22", "#6b7a1f")
    assert distances("normal", pair)[0] > 50
    assert distances("protanopia", pair)[0] < 30


def test_a_name_alone_decides_how_a_row_looks():
    rows = ("sgd", "sgd+sam", "sgd-2x", "adam", "adam+sam", "adam-2x", "lion", "my-own")
    whole = style.looks(rows)
    assert len({(look.line, look.marker, look.filled) for look in whole.values()}) == len(rows)
    for row in rows:
        assert style.looks([row, "zeta"])[row] == whole[row] == style.look(row)
    assert style.look("lion") != style.look("my-own")


def test_names_that_would_look_alike_are_told_apart():
    names = [f"row{i}" for i in range(200)]
    wanted = {}
    for name in names:
        wanted.setdefault(style.look(name), []).append(name)
    alike = next(found for found in wanted.values() if len(found) > 1)[:2]
    one, other = style.looks(alike).values()
    assert one != other
    assert style.looks(alike) == style.looks(alike[::-1])
    assert len(style.looks(names)) == len(names)  # more than there are looks


def test_lines_that_are_no_rows_take_turns():
    names = [f"line {i}" for i in range(12)]
    assert len(set(style.in_turn(names).values())) == 12


def test_an_svg_follows_the_readers_colour_scheme():
    text = style.rendered(figure(), "svg").decode()
    (sheet,) = re.findall("<style.*?</style>", text, flags=re.S)
    assert "@media (prefers-color-scheme: dark)" in sheet
    for light, dark in style.DARK.items():
        assert f'[style*="fill: {light}"] {{ fill: {dark} !important }}' in sheet
    drawn = set(re.findall(r"(?:fill|stroke): (#\w+)", text.replace(sheet, "")))
    assert {style.INK, style.PAPER} <= drawn
    assert "#000000" not in drawn
