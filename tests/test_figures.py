import dataclasses
import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from scipy import stats

from flatbench.records.sections import sections
from flatbench.report import figures, style
from flatbench.report.numbers import Numbers
from tests.synthetic import MEANS, grid, on_both_terms, record


def section_of(records):
    (section,) = sections(records)
    return section


def with_training(records):
    return [dataclasses.replace(r, train_accuracy=99.0) for r in records]


def test_lines_are_means_and_bands_are_sample_std():
    records = grid(epochs=5)
    figure = figures.curves(section_of(records))
    axes = figure.axes[0]
    assert axes.get_title() == "resnet18, n = 3"
    runs = [r for r in records if (r.architecture, r.optimizer) == ("resnet18", "adam+sam")]
    values = np.array([[e.test_accuracy for e in r.history] for r in runs])
    (line,) = [line for line in axes.lines if line.get_label() == "adam+sam"]
    assert line.get_ydata() == pytest.approx(values.mean(0))
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]
    band = axes.collections[list(MEANS).index("adam+sam")].get_paths()[0].vertices
    last = band[band[:, 0] == 5][:, 1]
    mean, std = values.mean(0)[-1], values.std(0, ddof=1)[-1]
    assert (last.min(), last.max()) == pytest.approx((mean - std, mean + std))


def test_rows_differ_without_their_colours():
    axes = figures.curves(section_of(grid(epochs=3))).axes[0]
    looks = [(line.get_linestyle(), line.get_marker()) for line in axes.lines]
    assert len(set(looks)) == len(MEANS)


def drawn_rows(figure):
    """The colour and marker of every labelled row of a figure's first panel."""
    axes = figure.axes[0]
    return {
        line.get_label(): (line.get_color(), line.get_marker())
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_a_row_looks_alike_in_every_figure_whatever_stands_beside_it():
    whole = with_training(grid(epochs=4))
    part = with_training(grid(epochs=4, means={"adam+sam": 91.0, "zeta": 90.0}, protocol="mine"))
    looks = [
        drawn_rows(figures.draw(Numbers(section_of(records)), name))
        for records in (whole, part)
        for name in ("test_accuracy", "cost", "price", "gap-sam_sharpness")
    ]
    assert all("adam+sam" in look for look in looks)
    assert len({look["adam+sam"] for look in looks}) == 1
    assert len({look["zeta"] for look in looks[4:]}) == 1
    forest = figures.draw(Numbers(section_of(whole)), "gains")
    markers = {(line.get_color(), line.get_marker()) for line in forest.axes[0].lines}
    assert looks[0]["adam+sam"] in markers


def test_a_diverged_run_is_a_line_of_its_own_and_not_in_the_mean():
    records = [r for r in grid(epochs=5) if r.optimizer == "sgd"]
    lost = dataclasses.replace(
        records[0],
        status="diverged",
        reason="x",
        test_accuracy=None,
        history=records[0].history[:2],
    )
    axes = figures.curves(section_of([lost, *records[1:]])).axes[0]
    assert axes.get_title() == "resnet18, n = 2"
    mean, thin, cross = axes.lines
    assert len(mean.get_xdata()) == 5
    assert len(thin.get_xdata()) == 2
    assert cross.get_marker() == "x"


def test_one_seed_has_no_band():
    axes = figures.curves(section_of(grid([0], epochs=3))).axes[0]
    assert not axes.collections


def test_gap_is_training_less_test_accuracy_and_tells_tau():
    records = with_training(grid())
    figure = figures.gap(Numbers(section_of(records)))
    points = np.concatenate([line.get_xydata() for line in figure.axes[0].lines])
    runs = [r for r in records if r.architecture == "resnet18"]
    expected = [(r.sam_sharpness, 99 - r.test_accuracy) for r in runs]
    assert np.allclose(sorted(map(tuple, points)), sorted(expected))
    assert figure.get_suptitle().startswith("τ = +")
    assert "95 %: " in figure.get_suptitle()
    assert "n = 24 runs in 8 cells" in figure.get_suptitle()


@pytest.fixture
def coarse(monkeypatch):
    monkeypatch.setattr(style, "DPI", 40)


def test_files_are_named_by_protocol_and_figure_and_are_what_they_say(tmp_path, coarse):
    records = with_training(grid(protocol="../a b", architectures=("vgg16",)))
    paths = figures.write(records, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    figures_drawn = ("gains", "gap-sam_sharpness", "outcome-sam_sharpness")
    assert names == sorted(f"___a_b-{n}.{s}" for n in figures_drawn for s in ("png", "svg"))
    assert sorted(path.name for path in paths) == names
    for path in paths:
        if path.suffix == ".png":
            assert imread(path).std() > 0.05  # drawn, not blank
        else:
            assert ET.parse(path).getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", ["gains", "cost", "price", "gap-sam_sharpness"])
def test_the_same_records_make_the_same_bytes(name):
    records = with_training(grid(epochs=3, architectures=("vgg16",)))
    one, other = (
        style.rendered(figures.draw(Numbers(section_of(records)), name), "svg") for _ in range(2)
    )
    assert one == other


def test_hostile_names_and_odd_numbers_are_drawn(tmp_path, coarse):
    records = [
        record(
            "$x^{$", "$a_{\\b$\n", seed=s, test_accuracy=0.0, sam_sharpness=0.0, train_accuracy=1.0
        )
        for s in range(2)
    ]
    records += [record("dead", "$a_{\\b$\n", status="failed")]
    assert len(figures.write(records, tmp_path)) == 4
    assert figures.write([record("dead", status="failed")], tmp_path) == []


LONG = {f"an-optimizer-of-mine-{i}": 80.0 + i for i in range(7)}


def shown_texts(figure):
    """The texts that are seen, with their boxes; a tick outside its axis is not seen."""
    figure.draw_without_rendering()
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            ticks = [
                (axis, tick)
                for axes in figure.axes
                for axis in (axes.xaxis, axes.yaxis)
                for tick in axis.get_major_ticks()
                if text in (tick.label1, tick.label2)
            ]
            for axis, tick in ticks:
                low, high = sorted(axis.get_view_interval())
                if not low <= tick.get_loc() <= high:
                    break
            else:
                found.append((text.get_text(), box))
    return found


@pytest.mark.parametrize(
    ("architectures", "means"),
    [(("resnet18",), LONG), (("resnet18", "vgg16"), MEANS)],
    ids=["one", "two"],
)
@pytest.mark.parametrize(
    "name", ["gains", "cost", "price", "outcome-sam_sharpness", "test_accuracy"]
)
def test_no_text_of_a_figure_is_clipped_or_overlaps(architectures, means, name):
    records = with_training(grid(epochs=12, architectures=architectures, means=means))
    if means is LONG:
        first = next(iter(LONG))
        records = [
            dataclasses.replace(r, base_row=None if r.optimizer == first else first)
            for r in records
        ]
    figure = figures.draw(Numbers(section_of(records)), name)
    texts = shown_texts(figure)
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in texts:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 1 or high <= 1, (one, other)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["cost", "price", "outcome-sam_sharpness", "test_accuracy"])
def test_a_long_legend_leaves_the_panels_their_height(name):
    means = {f"an-optimizer-of-mine-{i}": 80.0 + i / 2 for i in range(14)}
    heights = []
    for part in (4, 14):
        some = dict([*means.items()][:part])
        records = grid(epochs=3, architectures=("resnet18",), means=some)
        figure = figures.draw(Numbers(section_of(records)), name)
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height / figure.dpi)
    assert heights[1] > 0.9 * heights[0]


def test_epochs_are_whole_numbers():
    axes = figures.curves(section_of(grid(epochs=3))).axes[0]
    ticks = axes.xaxis.get_major_locator().tick_values(*axes.get_xlim())
    assert all(tick == round(tick) for tick in ticks)


def test_an_axis_of_accuracy_shows_the_end_where_rows_differ():
    """Chance to 90 % in 12 epochs: the axis begins near the lowest of the last third."""
    records = grid(epochs=12)
    axes = figures.curves(section_of(records)).axes[1]
    ends = [line.get_ydata()[-4:] for line in axes.lines]
    low, high = axes.get_ylim()
    assert min(map(min, ends)) > low > min(line.get_ydata()[0] for line in axes.lines)
    assert max(map(max, ends)) < high < max(map(max, ends)) + 15


def test_cost_is_by_gradients_with_intervals_and_tells_who_reached_the_target():
    records = grid(epochs=10, spread=0.1, means={"sgd": 80.5, "sgd+sam": 90.0})
    late = [
        dataclasses.replace(
            r,
            history=tuple(dataclasses.replace(e, test_accuracy=1.0) for e in r.history),
        )
        if (r.optimizer, r.seed) == ("sgd", 2)
        else r
        for r in records
    ]
    figure = figures.draw(Numbers(section_of(late)), "cost")
    upper, _, lower, _ = figure.axes
    (line,) = [line for line in upper.lines if line.get_label() == "sgd+sam"]
    assert line.get_xdata().tolist() == [34 * (i + 1) for i in range(10)]
    runs = [r for r in records if (r.optimizer, r.architecture) == ("sgd+sam", "resnet18")]
    last = [r.history[-1].test_accuracy for r in runs]
    half = stats.t.ppf(0.975, 2) * stats.sem(last)
    ends = [line.get_ydata() for line in upper.lines if list(line.get_xdata()) == [340, 340]]
    assert any(np.allclose(e, [np.mean(last) - half, np.mean(last) + half]) for e in ends)
    points = [line for line in lower.lines if line.get_marker() == style.look("sgd+sam").marker]
    first = [1 + next(i for i, e in enumerate(r.history) if e.test_accuracy >= 80) for r in runs]
    assert sorted(points[0].get_xdata()) == sorted(34 * n for n in first)
    (cross,) = [line for line in lower.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert (cross.get_xdata(), cross.get_ydata()) == ([170], [0])


def test_the_forest_is_of_the_gains_and_hollow_where_gradients_are_equal():
    records = [
        dataclasses.replace(
            r, base="sgd", gradient_evaluations=100 if r.optimizer == "sgd" else 200
        )
        for r in grid(means={"sgd": 88.0, "sgd-2x": 89.0, "sgd+sam": 92.0})
    ]
    numbers = Numbers(section_of(records))
    axes = figures.draw(numbers, "gains").axes[0]
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    gains = [numbers.pair_gains[0], numbers.equal_compute[0]]
    assert [m.get_xdata()[0] for m in marks] == [g.paired.mean for g in gains]
    colour = style.look("sgd+sam").colour
    assert [m.get_markerfacecolor() for m in marks] == [colour, style.PAPER]
    bars = [line.get_xdata() for line in axes.lines if line.get_color() == colour][::2]
    intervals = [(g.paired.interval.low, g.paired.interval.high) for g in gains]
    assert list(map(tuple, bars)) == intervals
    assert [t.get_text() for t in axes.get_yticklabels()] == ["sgd+sam − sgd", "sgd+sam − sgd-2x"]


def test_prices_are_means_with_intervals_and_a_line_joins_a_base_and_its_longer_training():
    records = [r for r in on_both_terms() if r.architecture == "vgg16"]
    numbers = Numbers(section_of(records))
    panels = zip(
        figures.draw(numbers, "price").axes, ("gradient_evaluations", "seconds"), strict=True
    )
    for axes, price in panels:
        at = {}
        for line in axes.lines:
            if not line.get_label().startswith("_"):
                ((x,), (y,)) = line.get_data()
                at[line.get_label()] = (x, y)
        most = max(x for x, _ in at.values())
        for row, (x, y) in at.items():
            runs = [r for r in records if r.optimizer == row]
            values = [r.test_accuracy for r in runs]
            # rows of the same price stand side by side
            assert abs(x - np.mean([getattr(r, price) for r in runs])) < 0.03 * most
            assert y == pytest.approx(np.mean(values))
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            ends = [line.get_ydata() for line in axes.lines if list(line.get_xdata()) == [x, x]]
            assert any(np.allclose(e, [y - half, y + half]) for e in ends)
        assert len(at) == len({x for x, _ in at.values()}) == 5
        joined = [line for line in axes.lines if line.get_color() == style.GUIDE]
        assert [list(zip(*line.get_data(), strict=True)) for line in joined] == [
            sorted([at["sgd"], at["sgd-2x"]])
        ]
