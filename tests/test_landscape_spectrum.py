"""The Hessian's spectrum against the dense Hessian's eigenvalues, its figure and its file."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import cross_entropy

from flatbench.errors import UsageError
from flatbench.landscape import Spectrum, hessian_spectrum, plots, spectrum
from flatbench.sharpness import loss_surface
from tests.losses import ANY, D, Quadratic, dense_hessian, examples, mean, mlp, quadratic


def small(path=None, seed=0, model=None, data=None, **changes):
    sizes = {"probes": 3, "steps": 6} | changes
    surface = loss_surface(model or mlp(), cross_entropy, *(data or examples()))
    return hessian_spectrum(surface, seed=seed, path=path, **sizes)


def line_of(figure, place=0):
    return figure.axes[0].lines[place]


def masses(xs, ys):
    """The mass in each piece between two neighbours of the places ``xs``, by trapezoids."""
    return np.diff(xs) * (ys[1:] + ys[:-1]) / 2


# --- values -------------------------------------------------------------------------------------


def test_the_drawn_density_is_that_of_the_dense_hessians_eigenvalues():
    model, (x, y) = mlp(), examples()
    values = np.linalg.eigvalsh(dense_hessian(model, cross_entropy, x, y).numpy())
    surface = loss_surface(model, cross_entropy, x, y)
    found = hessian_spectrum(surface, probes=100, steps=40)
    xs, ys = line_of(plots.spectrum({"mlp": found})).get_xydata().T
    mass = masses(xs, ys)
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    width = 0.005 * np.ptp(values)  # what the docstring promises
    places = (xs[1:] + xs[:-1]) / 2
    for cut in np.quantile(values, [0.1, 0.5, 0.8, 0.97]):
        exact = stats.norm.cdf(cut, values, width).mean()
        assert mass[places < cut].sum() == pytest.approx(exact, abs=0.03)
    _, error = found.density().moment(1)
    assert mass @ places == pytest.approx(values.mean(), abs=4 * error)
    assert 4 * error < values.mean()  # otherwise 0 would do as well
    assert found.ends == pytest.approx((values[0], values[-1]), rel=1e-6)


def test_the_cost_is_three_gradients_a_step():
    found = small(probes=2, steps=5)
    assert found.density().gradient_evaluations == 2 * (1 + 2 * 5)
    assert [p.gradient_evaluations for p in found.probe_densities()] == [11, 11]


def test_more_steps_than_parameters_and_probes_that_end_early():
    model = Quadratic(torch.diag(torch.tensor([1.0, 1, 4, 4], dtype=D)), *torch.ones(2, 4, dtype=D))
    found = hessian_spectrum(loss_surface(model, mean, *ANY), probes=2, steps=9)
    assert found.nodes.shape == (2, 4)
    assert found.ends == pytest.approx((1, 4), rel=1e-9)  # a row's rest, 0 of mass 0, is no end
    assert found.costs.tolist() == [5, 5]


def test_seeds_share_no_probe_and_leave_torchs_own_randomness():
    model, data = mlp(), examples()  # these two draw from it
    before = torch.get_rng_state()
    first, again, other = (small(seed=s, model=model, data=data) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first.nodes, again.nodes)
    rows = np.concatenate([first.nodes, other.nodes])
    assert len(np.unique(rows[:, 0])) == 6


def test_a_hessian_that_is_not_finite(tmp_path):
    model = Quadratic(torch.full((3, 3), torch.nan, dtype=D), *torch.ones(2, 3, dtype=D))
    path = tmp_path / "a.npz"
    with pytest.raises(ArithmeticError, match="not finite"):
        hessian_spectrum(loss_surface(model, mean, *ANY), path=path)
    assert not path.exists()


@pytest.mark.parametrize("changes", [{"probes": 0}, {"steps": 0}, {"seed": -1}])
def test_arguments_out_of_range(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))}.* at least"):
        small(**changes)


# --- the figure ---------------------------------------------------------------------------------


def test_lines_are_overlaid_and_differ_without_colour():
    both = {"sgd": small(), "sgd+sam": small(seed=1)}
    axes = plots.spectrum(both).axes[0]
    assert axes.get_yscale() == "log"
    first, second = axes.lines[::2]  # every other one is a mark
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() != second.get_marker()


def test_the_marker_is_at_the_largest_eigenvalue_and_the_legend_tells_it():
    surfaces = [loss_surface(quadratic(s), mean, *ANY) for s in ([9.0, 1, 0, -2], [4.56, 0, 0, 0])]
    found = {f"row {i}": hessian_spectrum(s, steps=4) for i, s in enumerate(surfaces)}
    axes = plots.spectrum(found).axes[0]
    for line, mark, largest in zip(axes.lines[::2], axes.lines[1::2], (9, 4.56), strict=True):
        assert mark.get_marker() == line.get_marker()
        ((x, y),) = mark.get_xydata()
        assert x == pytest.approx(largest)
        assert np.log(y) == pytest.approx(np.log(np.interp(x, *line.get_xydata().T)), abs=0.01)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["row 0: λₘₐₓ = 9.00", "row 1: λₘₐₓ = 4.56"]


def test_a_largest_eigenvalue_that_the_probes_nearly_miss_is_marked_all_the_same():
    spectra = {"": small(probes=1)}
    masses = spectra[""].masses
    masses[0, 0] += masses[0, -1] * (1 - 1e-9)  # the last node is the largest
    masses[0, -1] *= 1e-9
    axes = plots.spectrum(spectra).axes[0]
    ((x, y),) = axes.lines[1].get_xydata()
    assert (x, y) == (spectra[""].ends[1], axes.get_ylim()[0])


def test_the_band_is_the_lowest_and_the_highest_probe():
    found = small(probes=3)
    axes = plots.spectrum({"": found}).axes[0]
    xs, ys = axes.lines[0].get_xydata().T
    width = 0.005 * (found.ends[1] - found.ends[0])
    each = [p.density(xs, width) for p in found.probe_densities()]
    band = axes.collections[0].get_paths()[0].vertices
    for x, low, high in list(zip(xs, np.min(each, 0), np.max(each, 0), strict=True))[::97]:
        here = band[np.isclose(band[:, 0], x), 1]
        floor = 1e-3 * axes.get_ylim()[0]
        assert (here.min(), here.max()) == pytest.approx((max(low, floor), max(high, floor)))
    assert np.allclose(ys, np.maximum(np.mean(each, 0), floor))


def test_the_axis_ends_at_a_tenth_of_one_eigenvalue():
    """One of the two cases has a spectrum far wider: both are blurred alike."""
    wide, narrow = ([100.0] + [0.0] * 99, [10.0] + [0.0] * 49)
    spectra = {
        str(len(s)): hessian_spectrum(loss_surface(quadratic(s), mean, *ANY), steps=5, probes=2)
        for s in (wide, narrow)
    }
    axes = plots.spectrum(spectra).axes[0]
    one = stats.norm.pdf(0, scale=0.5) / 100
    assert axes.get_ylim()[0] == pytest.approx(0.1 * one, rel=1e-6)


@pytest.mark.parametrize("spectrum_of", [[0.0] * 5, [3.0] * 5])
def test_eigenvalues_that_are_all_alike_can_be_drawn(spectrum_of):
    surface = loss_surface(quadratic(spectrum_of), mean, *ANY)
    line = line_of(plots.spectrum({"": hessian_spectrum(surface)}))
    xs, ys = line.get_xydata().T
    assert xs[ys.argmax()] == pytest.approx(spectrum_of[0], abs=0.01)


def test_what_cannot_be_drawn():
    found = small()
    for spectra, message in [
        ({}, "spectra must be 1 to 4, got 0"),
        (dict.fromkeys("abcde", found), "spectra must be 1 to 4, got 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            plots.spectrum(spectra)
    nodes = found.nodes.copy()
    nodes[1:] = np.nan
    part = dataclasses.replace(found, nodes=nodes)
    with pytest.raises(ValueError, match="'a' must have run all 3 probes, got 1"):
        plots.spectrum({"a": part})


# --- the file -----------------------------------------------------------------------------------


def counted(monkeypatch, limit=100):
    """Count the probes that run; interrupt the one after ``limit``."""
    calls, real = [], spectrum.spectral_density

    def density(*args, **kwargs):
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(spectrum, "spectral_density", density)
    return calls


def test_an_interrupted_run_goes_on_with_the_probes_it_lacks(tmp_path, monkeypatch):
    path, whole = tmp_path / "a.npz", small()
    with monkeypatch.context() as patch:
        counted(patch, limit=2)
        with pytest.raises(KeyboardInterrupt):
            small(path)
    part = spectrum.load(path)
    assert part.done.tolist() == [True, True, False]
    calls = counted(monkeypatch)
    seen = []
    resumed = small(path, on_probe=lambda done, total: seen.append((done, total)))
    assert len(calls) == 1
    assert seen[-1] == (3, 3)
    again = small(path)
    assert len(calls) == 1
    for found in (resumed, again, spectrum.load(path)):
        for field in dataclasses.fields(Spectrum):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(whole, field.name))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    small(path)
    before = path.read_bytes()
    x, y = examples()
    for message, changes in {
        "seed must be 1 to go on with this file, got 0": {"seed": 1},
        "probes × steps must be 4 × 6 to go on with this file, got 3 × 6": {"probes": 4},
        "probes × steps must be 3 × 7": {"steps": 7},
        "weights must be": {"model": mlp(seed=1)},
        "examples must be": {"data": (x + 1, y)},
    }.items():
        with pytest.raises(UsageError, match=f"a.npz: {message}"):
            small(path, **changes)
    surface = loss_surface(mlp(), cross_entropy, x, y, batchnorm="train", batch_size=10)
    with pytest.raises(UsageError, match=r"batchnorm must be 'train.* 10' .*, got 'eval'"):
        hessian_spectrum(surface, probes=3, steps=6, path=path)
    assert path.read_bytes() == before


def test_files_that_are_damaged(tmp_path):
    path = tmp_path / "a.npz"
    small(path)
    whole = path.read_bytes()
    for content in (b"", b"not an archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"a\.npz: is not an \.npz file"):
            small(path)
    for change, message in [
        ({"format": "flatbench landscape 1"}, "format must be 'flatbench spectrum 1', got"),
        ({"masses": None}, "must have an array named 'masses', got none"),
        ({"nodes": np.zeros(6)}, r"nodes must be float64 of two axes, got .* \(6,\)"),
        ({"nodes": np.zeros((3, 6), int)}, "nodes must be float64 of two axes, got int64"),
        ({"masses": np.zeros((3, 5))}, r"masses must be float64 of the shape \(3, 6\), got"),
        ({"masses": np.zeros((3, 6))}, "the masses of a probe must sum to 1"),
        ({"masses": np.full((3, 6), np.nan)}, "the masses of a probe must sum to 1"),
        ({"costs": np.zeros(2)}, r"costs must be float64 of the shape \(3,\), got"),
        ({"seed": np.array([])}, "seed must be a whole number, got"),
        ({"dimension": 1.5}, "dimension must be a whole number, got"),
    ]:
        path.write_bytes(whole)
        with np.load(path) as file:
            arrays = dict(file) | change
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        with pytest.raises(UsageError, match=f"a.npz: {message}"):
            small(path)
