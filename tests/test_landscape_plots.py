"""Figures of landscapes and spectra: the same bytes always, one scale, readable in grey."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from flatbench.landscape import Landscape, hessian_spectrum, plots
from flatbench.report import style
from flatbench.sharpness import loss_surface
from flatbench.text import figure_text
from tests.losses import ANY, mean, quadratic


def drawn(losses, alphas=None, betas=None):
    two = losses.ndim == 2
    return Landscape(
        losses=losses,
        done=np.ones(losses.shape, dtype=bool),
        alphas=np.linspace(-1, 1, len(losses)) if alphas is None else alphas,
        betas=np.linspace(-1, 1, losses.shape[1]) if two else np.empty(0),
        labels=("first", "second")[: losses.ndim],
        kind="random",
        seed=0,
        batchnorm="eval",
        weights="",
        examples="",
        source="",
    )


def bowl(size=11, height=1.0):
    a = np.linspace(-1, 1, size)
    return 0.01 + height * (a[:, None] ** 2 + 0.2 * a[None, :] ** 2)


FIGURES = {
    "contour": lambda: plots.contour({"SGD": drawn(bowl()), "SAM": drawn(bowl(9, 0.3))}),
    "surface": lambda: plots.surface({"SGD": drawn(bowl()), "SAM": drawn(bowl(9, 0.3))}),
    "lines": lambda: plots.lines({"SGD": drawn(bowl()[5]), "SAM": drawn(bowl(9)[4])}),
    "ends": lambda: plots.lines({"line": drawn(bowl()[5])}, ends=("SGD", "SAM")),
    "spectrum": lambda: plots.spectrum({"SGD": spectrum_of(), "SAM": spectrum_of(1)}),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_written_by_its_suffix_and_always_alike(make, tmp_path):
    for suffix, opening in [("png", b"\x89PNG"), ("svg", b"<?xml")]:
        paths = [tmp_path / f"{i}.{suffix}" for i in (1, 2)]
        for path in paths:
            style.write(make(), path)
        assert paths[0].read_bytes().startswith(opening)
        assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(ValueError, match="suffix must be one of png, svg, got 'gif'"):
        style.write(make(), tmp_path / "a.gif")
    assert make().get_figwidth() <= 17 / 2.54 + 1e-9  # a page's text width, in inches


def test_the_first_direction_runs_to_the_right():
    ramp = np.repeat(np.linspace(1, 9, 5)[:, None], 4, axis=1)  # rises with alpha alone
    axes = plots.contour({"": drawn(ramp)}, scale="linear").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("first", "second")
    lines = [c for c in axes.collections if not c.get_fill()] or axes.collections
    paths = [p for c in lines[-1:] for p in c.get_paths() if len(p.vertices)]
    assert paths
    for path in paths:
        assert np.ptp(path.vertices[:, 0]) < 1e-9  # each contour is a vertical line
        assert np.ptp(path.vertices[:, 1]) > 1
    # 5 × 4 points fit a mesh of these axes in one way only, or this raises
    surface = plots.surface({"": drawn(ramp)}, scale="linear").axes[0]
    assert (surface.get_xlabel(), surface.get_ylabel()) == ("first", "second")


def test_a_figure_is_entitled_and_its_ticks_are_few_and_short():
    for made in (
        plots.contour({"SGD": drawn(bowl())}, title="digits: loss"),
        plots.surface({"SGD": drawn(bowl())}, title="digits: loss"),
        plots.lines({"SGD": drawn(bowl()[5])}, title="digits: loss"),
    ):
        assert made.get_suptitle() == "digits: loss"
        made.draw_without_rendering()
        labels = [t.get_text() for t in made.axes[0].get_xticklabels()]
        assert all(re.fullmatch(r"(−?\d(\.\d*[1-9])?)?", label) for label in labels), labels
        assert 3 <= len(labels) <= 7
    assert plots.spectrum({"a": spectrum_of()}, title="digits: loss").get_suptitle() == (
        "digits: loss"
    )
    assert plots.contour({"SGD": drawn(bowl())}).get_suptitle() == ""


def test_a_line_has_the_look_that_it_is_given_as_in_the_report():
    look = style.look("adam+sam")
    for made in (
        plots.lines({"a": drawn(bowl()[5])}, looks={"a": look}),
        plots.spectrum({"a": spectrum_of()}, looks={"a": look}),
    ):
        line = made.axes[0].lines[0]
        assert (line.get_color(), line.get_marker()) == (look.colour, look.marker)


def test_white_marks_stay_white_in_the_dark_scheme():
    """Paper's own white becomes dark there; what stands on a coloured field must not."""
    svg = style.rendered(plots.contour({"SGD": drawn(bowl())}), "svg").decode()
    assert "stroke: #fcfcfc" in svg
    body = svg.partition("</style>")[2]
    assert "stroke: #ffffff" not in body


def test_panels_share_one_scale():
    figure = plots.contour({"SGD": drawn(bowl(11, 100)), "SAM": drawn(bowl(11, 1))})
    limits = [axes.collections[0].get_clim() for axes in figure.axes[:2]]
    assert limits[0] == limits[1] == pytest.approx((0.01, 0.01 + 120))
    tops = [
        axes.get_zlim() for axes in plots.surface({"a": drawn(bowl(9, 9)), "b": drawn(bowl())}).axes
    ]
    assert tops[0] == tops[1]


def test_the_scale_is_logarithmic_where_the_losses_span_far():
    def scale(height):
        return plots.lines({"a": drawn(bowl(11, height)[:, 5])}).axes[0].get_yscale()

    assert scale(10.0) == "log"
    assert scale(0.1) == "linear"
    assert plots.lines({"a": drawn(bowl()[5])}, scale="log").axes[0].get_yscale() == "log"
    with pytest.raises(
        ValueError, match="scale must be 'linear' as the lowest loss is 0, got 'log'"
    ):
        plots.contour({"a": drawn(bowl() - 0.01)}, scale="log")


def test_holes_and_plains_can_be_drawn(tmp_path):
    holes = bowl()
    holes[2:5, 3] = np.nan
    holes[0, 0] = np.inf
    plain = np.full((4, 4), 2.0)
    for losses in (holes, plain, 0 * plain):
        for draw in (plots.contour, plots.surface):
            style.write(draw({"": drawn(losses)}), tmp_path / "a.png")
    style.write(plots.lines({"": drawn(holes[:, 3])}), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_what_cannot_be_drawn():
    flat, line = drawn(bowl()), drawn(bowl()[5])
    for draw, landscapes, message in [
        (plots.contour, {}, "landscapes must be 1 to 3 in one figure, got 0"),
        (
            plots.surface,
            dict.fromkeys("abcd", flat),
            "landscapes must be 1 to 3 in one figure, got 4",
        ),
        (plots.contour, {"a": line}, "landscape 'a' must be a grid .*, got 11 points"),
        (
            plots.contour,
            {"a": drawn(bowl()[:1])},
            "landscape 'a' must be a grid of at least 2 × 2 points, got 1 × 11",
        ),
        (plots.lines, {"a": flat}, "landscape 'a' must be a line, got 11 × 11 points"),
        (
            plots.lines,
            {"a": drawn(np.full(3, np.nan))},
            "landscape 'a' must have a finite point, got none",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            draw(landscapes)


def test_shades_rise_in_lightness_so_that_grey_reads():
    """Luma of the colour map, as a grey printer makes it: strictly monotone."""
    figure = plots.contour({"": drawn(bowl())})
    colours = figure.axes[0].collections[0].get_cmap()(np.linspace(0, 1, 64))[:, :3]
    assert (np.diff(colours @ [0.299, 0.587, 0.114]) > 0).all()


def test_drawing_needs_no_display_and_evaluating_no_matplotlib():
    code = (
        "import sys, flatbench.landscape; assert 'matplotlib' not in sys.modules\n"
        "import flatbench.landscape.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


NAMES = ["$x^{$", "$a_{\\b$", "a\n\x1b[2Jb", "50 $"]


def spectrum_of(seed=0):
    surface = loss_surface(quadratic([3.0, 1.0, 0.0]), mean, *ANY)
    return hessian_spectrum(surface, probes=2, steps=3, seed=seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["contour", "surface", "lines", "ends", "axes", "spectrum"])
def test_a_name_is_shown_and_not_read_as_mathematics(name, kind, tmp_path):
    flat, line = drawn(bowl()), drawn(bowl()[5])
    figure = {
        "contour": lambda: plots.contour({name: flat}),
        "surface": lambda: plots.surface({name: flat}),
        "lines": lambda: plots.lines({name: line, "b": line}),
        "ends": lambda: plots.lines({"a": line}, ends=(name, name)),
        "axes": lambda: plots.contour({"a": dataclasses.replace(flat, labels=(name, name))}),
        "spectrum": lambda: plots.spectrum({name: spectrum_of()}),
    }[kind]()
    style.write(figure, tmp_path / "a.svg")  # mathtext that cannot be read raises here
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert [text for text in texts if figure_text(name) in text]
    assert not [text for text in texts if "\x1b" in text or "\n" in text]


def test_a_surface_has_one_layout_in_every_format():
    """Settings at the time of writing gave it another one after it had been drawn once."""
    drawings = {"SGD": drawn(bowl()), "SAM": drawn(bowl())}
    alone = style.rendered(plots.surface(drawings), "svg")
    figure = plots.surface(drawings)
    style.rendered(figure, "png")
    assert style.rendered(figure, "svg") == alone
