import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.image import imread

from flatbench.records.sections import sections
from flatbench.report import figures
from flatbench.report.numbers import Numbers
from tests.synthetic import MEANS, grid, record


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


def test_rows_differ_in_line_or_lightness_not_in_hue_alone():
    axes = figures.curves(section_of(grid(epochs=3))).axes[0]
    looks = []
    for line in axes.lines:
        red, green, blue, _ = line.get_color()
        lightness = 0.299 * red + 0.587 * green + 0.114 * blue  # as a grey printer has it
        looks.append((round(lightness, 1), line.get_linestyle()))
    assert len(set(looks)) == len(MEANS)
    lights = sorted({lightness for lightness, _ in looks})
    assert len(lights) == 2
    assert lights[1] - lights[0] > 0.3


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


def test_files_are_named_by_protocol_and_figure_and_are_what_they_say(tmp_path):
    records = with_training(grid(epochs=3, protocol="../a b"))
    paths = figures.write(records, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    figures_drawn = ("gap-sam_sharpness", "sam_sharpness", "test_accuracy")
    assert names == sorted(f"___a_b-{n}.{s}" for n in figures_drawn for s in ("png", "svg"))
    assert sorted(path.name for path in paths) == names
    for path in paths:
        if path.suffix == ".png":
            assert imread(path).std() > 0.05  # drawn, not blank
        else:
            assert ET.parse(path).getroot().tag.endswith("svg")


def test_the_same_records_make_the_same_bytes(tmp_path):
    records = with_training(grid(epochs=3))
    one, other = tmp_path / "one", tmp_path / "other"
    figures.write(records, one)
    figures.write(records, other)
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_hostile_names_and_odd_numbers_are_drawn(tmp_path):
    records = [
        record(
            "$x^{$", "$a_{\\b$\n", seed=s, test_accuracy=0.0, sam_sharpness=0.0, train_accuracy=1.0
        )
        for s in range(2)
    ]
    records += [record("dead", "$a_{\\b$\n", status="failed")]
    assert len(figures.write(records, tmp_path)) == 2
    assert figures.write([record("dead", status="failed")], tmp_path) == []
