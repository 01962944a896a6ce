"""Slices of the loss: against the perturbed model itself, closed forms and their own file."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatbench import landscape as module
from flatbench.errors import UsageError
from flatbench.landscape import (
    Landscape,
    hessian_directions,
    line_direction,
    load,
    loss_landscape,
    plots,
    random_directions,
    save,
)
from flatbench.sharpness import loss_surface

D = torch.float64


def conv_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 4),
    ).to(D)
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2)
        net[1].bias.normal_()
    for _ in range(3):
        net(torch.randn(16, 1, 6, 6, dtype=D))
    return net.eval()


def images(n: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(n, 1, 6, 6, generator=g, dtype=D), torch.randint(4, (n,), generator=g)


def moved(model: nn.Module, *steps: tuple[float, Tensor]) -> nn.Module:
    """A copy whose parameters have moved by each factor times its flat vector."""
    twin = copy.deepcopy(model)
    flat = nn.utils.parameters_to_vector(twin.parameters())
    for factor, vector in steps:
        flat = flat + factor * vector
    nn.utils.vector_to_parameters(flat.detach(), twin.parameters())
    return twin


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(cross_entropy(model(x), y))


class Bowl(nn.Module):
    """Outputs ½ wᵀAw for every example."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.w = nn.Parameter(torch.zeros(len(matrix), dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * self.w @ self.matrix @ self.w).expand(len(x))


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()


# --- directions ---------------------------------------------------------------------------------


def test_random_directions_have_the_filters_lengths_and_leave_bias_and_batchnorm():
    model = conv_net()
    found = random_directions(model, count=3, seed=4)
    assert found.vectors.shape == (3, sum(p.numel() for p in model.parameters()))
    assert (found.kind, found.seed) == ("random", 4)
    for vector in found.vectors:
        pieces = vector.split([p.numel() for p in model.parameters()])
        for parameter, piece in zip(model.parameters(), pieces, strict=True):
            direction = piece.view(parameter.shape)
            if parameter.ndim == 1:
                assert not direction.any()
            else:  # one filter an output channel
                lengths = direction.flatten(1).norm(dim=1)
                torch.testing.assert_close(lengths, parameter.detach().flatten(1).norm(dim=1))
    assert not torch.allclose(found.vectors[0], found.vectors[1])


def test_random_directions_are_their_seeds():
    model = conv_net()
    first, again, other = (random_directions(model, seed=s).vectors for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    before = torch.get_rng_state()
    random_directions(model)
    assert torch.equal(before, torch.get_rng_state())


def test_random_directions_are_gaussian_before_they_are_normalised():
    model = nn.Linear(4000, 2, bias=False).to(D)
    direction = random_directions(model, count=1).vectors[0].view(2, 4000)
    z = direction / model.weight.detach().norm(dim=1, keepdim=True) * 4000**0.5
    assert abs(float(z.mean())) < 0.06
    assert float((z**4).mean()) == pytest.approx(3, rel=0.15)  # uniform: 1.8; signs: 1


def test_parameters_without_gradient_do_not_move():
    model, (x, y) = conv_net(), images()
    model[0].requires_grad_(False)
    found = random_directions(model, count=1)
    assert found.vectors.shape[1] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    full = torch.cat([torch.zeros(sum(p.numel() for p in model[0].parameters())), found.vectors[0]])
    result = loss_landscape(loss_surface(model, cross_entropy, x, y), found, [-1.0, 0.5])
    expected = [loss_of(moved(model, (a, full)), x, y) for a in (-1.0, 0.5)]
    np.testing.assert_allclose(result.losses, expected, rtol=1e-12)


def test_hessian_directions_bend_as_their_eigenvalues_say():
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    spectrum = np.array([9.0, 4.0, 1.0, 0.5, 0.0, -2.0])
    model = Bowl(torch.tensor(q @ np.diag(spectrum) @ q.T))
    surface = loss_surface(model, mean, torch.zeros(3, 1), torch.zeros(3))
    found = hessian_directions(surface, tolerance=1e-10)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(2), atol=1e-9)
    assert found.labels == ("eigenvector 1 (λ = 9)", "eigenvector 2 (λ = 4)")
    for vector in found.vectors:
        assert float(vector[vector.abs().argmax()]) > 0
    alphas, betas = np.linspace(-1, 1, 5), np.linspace(-2, 2, 4)
    result = loss_landscape(surface, found, alphas, betas)
    expected = 0.5 * (9 * alphas[:, None] ** 2 + 4 * betas[None, :] ** 2)
    np.testing.assert_allclose(result.losses, expected, atol=1e-6)
    short = hessian_directions(surface, max_products=2)
    assert "≈" in short.labels[0]


def test_hessian_directions_of_a_model_that_is_not_finite():
    model = Bowl(torch.full((3, 3), torch.nan, dtype=D))
    surface = loss_surface(model, mean, torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ArithmeticError, match="not finite"):
        hessian_directions(surface)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 5])
def test_each_point_is_the_loss_of_the_moved_model(batch_size):
    model, (x, y) = conv_net(), images()
    directions = random_directions(model, seed=3)
    first, second = directions.vectors
    alphas, betas = [-0.7, 0.0, 1.1], [-1.0, 0.0]
    surface = loss_surface(model, cross_entropy, x, y, batch_size=batch_size)
    plane = loss_landscape(surface, directions, alphas, betas)
    expected = [
        [loss_of(moved(model, (a, first), (b, second)), x, y) for b in betas] for a in alphas
    ]
    np.testing.assert_allclose(plane.losses, expected, rtol=1e-12)
    assert plane.losses[1, 1] == pytest.approx(loss_of(model, x, y), rel=1e-12)
    line = loss_landscape(surface, directions, alphas)
    np.testing.assert_allclose(line.losses, plane.losses[:, 1], rtol=1e-12)
    assert plane.complete
    assert line.complete
    assert (plane.seed, plane.batchnorm, plane.kind) == (3, "eval", "random")


def test_the_line_between_two_solutions_ends_at_them():
    start, end, (x, y) = conv_net(0), conv_net(1), images()
    line = line_direction(start, end.state_dict())
    surface = loss_surface(start, cross_entropy, x, y)
    result = loss_landscape(surface, line, [0, 0.5, 1], batchnorm="eval")
    assert result.losses[0] == pytest.approx(loss_of(start, x, y), rel=1e-12)
    assert result.losses[2] == pytest.approx(loss_of(end, x, y), rel=1e-12)
    middle = copy.deepcopy(start)
    mixed = {
        name: (tensor + end.state_dict()[name]) / 2 if tensor.is_floating_point() else tensor
        for name, tensor in start.state_dict().items()
    }
    middle.load_state_dict(mixed)  # parameters and running statistics
    assert result.losses[1] == pytest.approx(loss_of(middle, x, y), rel=1e-12)


def test_beyond_an_end_the_statistics_are_the_ends():
    start, end, (x, y) = conv_net(0), conv_net(1), images()
    line = line_direction(start, end.state_dict())
    surface = loss_surface(start, cross_entropy, x, y)
    result = loss_landscape(surface, line, [-2, 3], batchnorm="eval")
    before, beyond = moved(start, (-2, line.vectors[0])), moved(start, (3, line.vectors[0]))
    beyond.load_state_dict(dict(end.named_buffers()), strict=False)
    np.testing.assert_allclose(
        result.losses, [loss_of(before, x, y), loss_of(beyond, x, y)], rtol=1e-12
    )


def test_on_a_line_the_statistics_are_recomputed_unless_told_otherwise():
    start, end, (x, y) = conv_net(0), conv_net(1), images()
    line = line_direction(start, end.state_dict())
    surface = loss_surface(start, cross_entropy, x, y, batch_size=4)
    result = loss_landscape(surface, line, [0, 0.4])
    twin = moved(start, (0.4, line.vectors[0]))
    torch.optim.swa_utils.update_bn(list(x.split(4)), twin)
    assert result.losses[1] == pytest.approx(loss_of(twin.eval(), x, y), rel=1e-12)
    assert result.batchnorm == "recompute, batches of 4"
    kept = loss_landscape(surface, line, [0, 0.4], batchnorm="eval")
    assert abs(kept.losses[1] - result.losses[1]) > 1e-3


def test_batch_statistics():
    model, (x, y) = conv_net(), images()
    directions = random_directions(model)
    surface = loss_surface(model, cross_entropy, x, y)
    result = loss_landscape(surface, directions, [0.5], batchnorm="train")
    twin = moved(model, (0.5, directions.vectors[0])).train()
    assert result.losses[0] == pytest.approx(loss_of(twin, x, y), rel=1e-12)
    # the surface's own rule holds unless another is given
    surface = loss_surface(model, cross_entropy, x, y, batchnorm="train")
    own = loss_landscape(surface, directions, [0.5])
    assert (own.batchnorm, own.losses[0]) == (result.batchnorm, result.losses[0])
    running = loss_landscape(surface, directions, [0.5], batchnorm="eval")
    twin.load_state_dict(dict(model.named_buffers()), strict=False)  # loss_of moved the twin's
    assert running.losses[0] == pytest.approx(loss_of(twin.eval(), x, y), rel=1e-12)


def test_the_model_is_left_as_it_was_also_after_an_exception():
    model, (x, y) = conv_net(), images()
    model.train()
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    directions = random_directions(model)
    calls = []

    def failing(outputs, targets):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("eighth")
        return cross_entropy(outputs, targets)

    surface = loss_surface(model, failing, x, y, batch_size=6)
    for rule in ("eval", "train", "recompute"):
        calls.clear()
        with pytest.raises(RuntimeError, match="eighth"):
            loss_landscape(surface, directions, range(5), batchnorm=rule)
        assert [m.training for m in model.modules()] == flags
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert model[1].momentum == 0.1
        assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_loss_that_is_not_finite_is_a_value():
    model = Bowl(torch.eye(2, dtype=D))

    def cliff(outputs, targets):
        return torch.where(outputs.mean() > 1, torch.nan, outputs.mean())

    vectors = module.Directions("random", torch.eye(2, dtype=D), ("a", "b"), 0, "")
    surface = loss_surface(model, cliff, torch.zeros(2, 1), torch.zeros(2))
    found = loss_landscape(surface, vectors, [0, 1, 2])
    np.testing.assert_array_equal(found.losses, [0, 0.5, np.nan])
    assert found.complete


# --- the file -----------------------------------------------------------------------------------


def run(model, path, loss=cross_entropy, **changes):
    x, y = images()
    arguments = {"seed": 0, "alphas": [-1, 0, 1, 2], "betas": [0, 1, 2], "batchnorm": "eval"}
    arguments |= changes
    if "x" in arguments:
        x = arguments.pop("x")
    directions = arguments.pop("directions", None)
    seed = arguments.pop("seed")
    directions = directions or random_directions(model, seed=seed)
    return loss_landscape(loss_surface(model, loss, x, y), directions, path=path, **arguments)


def interrupted(after: int):
    """A loss that raises KeyboardInterrupt when it is called once more than ``after`` times."""
    calls = []

    def loss(outputs, targets):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return cross_entropy(outputs, targets)

    return loss, calls


def test_an_interrupted_grid_goes_on_where_it_stopped(tmp_path):
    model, path = conv_net(), tmp_path / "grid.npz"
    whole = run(model, None)
    loss, _ = interrupted(after=5)
    with pytest.raises(KeyboardInterrupt):
        run(model, path, loss)
    partial = load(path)
    assert int(partial.done.sum()) == 5
    assert not partial.complete
    assert np.isnan(partial.losses[~partial.done]).all()
    loss, calls = interrupted(after=100)
    resumed = run(model, path, loss)
    assert len(calls) == 12 - 5
    np.testing.assert_array_equal(resumed.losses, whole.losses)  # bit for bit
    np.testing.assert_array_equal(load(path).losses, whole.losses)
    loss, calls = interrupted(after=0)
    again = run(model, path, loss)  # nothing is left to do
    np.testing.assert_array_equal(again.losses, whole.losses)


def test_values_are_kept_as_they_come(tmp_path):
    model, path, seen = conv_net(), tmp_path / "grid.npz", []

    def on_point(done, total):
        assert int(load(path).done.sum()) == done  # save_every=0: after each point
        seen.append((done, total))

    run(model, path, save_every=0, on_point=on_point)
    assert seen == [(i, 12) for i in range(1, 13)]
    assert [p.name for p in tmp_path.iterdir()] == ["grid.npz"]  # no temporary file is left


def test_a_nan_that_was_evaluated_is_not_evaluated_again(tmp_path):
    model, path = conv_net(), tmp_path / "grid.npz"
    result = run(model, path, lambda o, t: cross_entropy(o, t) * torch.nan)
    assert np.isnan(result.losses).all()
    loss, calls = interrupted(after=0)
    assert run(model, path, loss).complete
    assert not calls


def test_a_file_of_something_else_is_refused(tmp_path):
    model, path = conv_net(), tmp_path / "grid.npz"
    run(model, path)
    before = path.read_bytes()
    for field, changes in {
        "seed: the file has 0; allowed: 1": {"seed": 1},
        "alphas: the file has 4 points from -1 to 2; allowed: 4 points from -1 to 3": {
            "alphas": [-1, 0, 1, 3]
        },
        "betas": {"betas": [0, 1, 2, 3]},
        "betas: the file has 3 points from 0 to 2; allowed: 0 points": {"betas": None},
        "batchnorm: the file has 'eval'; allowed: 'train, batches of 12'": {"batchnorm": "train"},
        "examples": {"x": images()[0] + 1},
        "kind: the file has 'random'; allowed: 'hessian'": {
            "directions": hessian_directions(
                loss_surface(model, cross_entropy, *images()), tolerance=0.1
            )
        },
    }.items():
        with pytest.raises(UsageError, match=f"grid.npz: {field}"):
            run(model, path, **changes)
    with pytest.raises(UsageError, match=r"grid\.npz: weights: the file has '"):
        run(conv_net(seed=1), path)
    assert path.read_bytes() == before


def test_another_end_of_the_line_or_another_eigenvector_is_refused(tmp_path):
    model, path = conv_net(), tmp_path / "line.npz"
    one, two = (line_direction(model, conv_net(seed=s).state_dict()) for s in (1, 2))
    run(model, path, directions=one, betas=None)
    assert load(path).seed is None
    with pytest.raises(UsageError, match=r"line.npz: source: the file has"):
        run(model, path, directions=two, betas=None)


def test_a_landscape_survives_its_file(tmp_path):
    result = run(conv_net(), None)
    save(result, tmp_path / "a.npz")
    found = load(tmp_path / "a.npz")
    for name in Landscape.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(result, name))
    assert isinstance(found.seed, int)
    with np.load(tmp_path / "a.npz") as arrays:  # plain numpy reads it
        assert arrays["seed"] == [0]
        assert arrays["losses"].shape == (4, 3)


def test_files_that_are_not_landscapes(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(UsageError, match=r"a\.npz: cannot be read: No such file"):
        load(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(UsageError, match=r"a\.npz: is not a \.npz file"):
        load(path)
    save(run(conv_net(), None), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"a\.npz: is not a \.npz file"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"a\.npz: is not a \.npz file"):
        load(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(UsageError, match=r"b\.npy: is not a \.npz file"):
        load(tmp_path / "b.npy")
    np.savez(path, losses=np.zeros(3))
    with pytest.raises(UsageError, match=r"a\.npz: format: 'None'; allowed: 'flatbench landscape"):
        load(path)
    np.savez(path, losses=np.array([object()], dtype=object))
    with pytest.raises(UsageError, match=r"a\.npz: is not a \.npz file"):
        load(path)
    for change, message in [
        ({"kind": None}, "kind: missing"),
        ({"losses": np.zeros((2, 2))}, r"losses: shape \(2, 2\); allowed: \(4, 3\)"),
        ({"done": np.zeros((4, 3))}, "losses"),
    ]:
        path.write_bytes(whole)
        with np.load(path) as file:
            arrays = dict(file) | change
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        with pytest.raises(UsageError, match=f"a.npz: {message}"):
            load(path)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"a\.npz: cannot be written"):
        save(run(conv_net(), None), tmp_path / "file" / "a.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": []}, "alphas: allowed"),
        ({"alphas": [0, 0]}, "alphas: allowed"),
        ({"alphas": [1, 0]}, "alphas: allowed"),
        ({"alphas": [[1.0]]}, "alphas: allowed"),
        ({"betas": [0, np.nan]}, "betas: allowed"),
        ({"batchnorm": "off"}, "batchnorm: 'off'; allowed: 'eval', 'train', 'recompute'"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        run(conv_net(), None, **changes)


def test_directions_that_do_not_fit():
    model = conv_net()
    with pytest.raises(ValueError, match="directions: 1; allowed: at least 2"):
        run(model, None, directions=random_directions(model, count=1))
    with pytest.raises(ValueError, match="directions: of 8 parameters; allowed: the model's"):
        run(model, None, directions=random_directions(nn.Linear(4, 2, bias=False).to(D)))
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, got 0"):
        random_directions(model, count=0)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got -1"):
        random_directions(model, seed=-1)
    with pytest.raises(ValueError, match="no parameter of two axes"):
        random_directions(nn.BatchNorm2d(3))


def test_solutions_that_no_line_joins():
    model, end = conv_net(), conv_net(1).state_dict()
    with pytest.raises(ValueError, match=r"'5\.bias' is in one of the two"):
        line_direction(model, {k: v for k, v in end.items() if k != "5.bias"})
    with pytest.raises(ValueError, match=r"'5\.bias' has the shape \(7,\); allowed: \(4,\)"):
        line_direction(model, end | {"5.bias": torch.zeros(7)})
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0\.weight' differs, but does not require a gradient"):
        line_direction(model, end)


# --- drawings -----------------------------------------------------------------------------------


def drawn(losses: np.ndarray, alphas=None, betas=None) -> Landscape:
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


def bowl(size: int = 11, height: float = 1.0) -> np.ndarray:
    a = np.linspace(-1, 1, size)
    return 0.01 + height * (a[:, None] ** 2 + 0.2 * a[None, :] ** 2)


FIGURES = {
    "contour": lambda: plots.contour({"SGD": drawn(bowl()), "SAM": drawn(bowl(9, 0.3))}),
    "surface": lambda: plots.surface({"SGD": drawn(bowl()), "SAM": drawn(bowl(9, 0.3))}),
    "lines": lambda: plots.lines({"SGD": drawn(bowl()[5]), "SAM": drawn(bowl(9)[4])}),
    "ends": lambda: plots.lines({"line": drawn(bowl()[5])}, ends=("SGD", "SAM")),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_written_by_its_suffix_and_always_alike(make, tmp_path):
    for suffix, opening in [("png", b"\x89PNG"), ("svg", b"<?xml")]:
        paths = [tmp_path / f"{i}.{suffix}" for i in (1, 2)]
        for path in paths:
            plots.write(make(), path)
        assert paths[0].read_bytes().startswith(opening)
        assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(ValueError, match=r"suffix '\.gif'; allowed: \.png, \.svg"):
        plots.write(make(), tmp_path / "a.gif")
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
    with pytest.raises(ValueError, match="scale: 'log', but the lowest loss is 0"):
        plots.contour({"a": drawn(bowl() - 0.01)}, scale="log")


def test_holes_and_plains_can_be_drawn(tmp_path):
    holes = bowl()
    holes[2:5, 3] = np.nan
    holes[0, 0] = np.inf
    plain = np.full((4, 4), 2.0)
    for losses in (holes, plain, 0 * plain):
        for draw in (plots.contour, plots.surface):
            plots.write(draw({"": drawn(losses)}), tmp_path / "a.png")
    plots.write(plots.lines({"": drawn(holes[:, 3])}), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_what_cannot_be_drawn():
    flat, line = drawn(bowl()), drawn(bowl()[5])
    for draw, landscapes, message in [
        (plots.contour, {}, "landscapes: 0; allowed: 1 to 3"),
        (plots.surface, dict.fromkeys("abcd", flat), "landscapes: 4; allowed: 1 to 3"),
        (plots.contour, {"a": line}, "landscape 'a': 11 points; allowed: a grid"),
        (plots.contour, {"a": drawn(bowl()[:1])}, "landscape 'a': 1 × 11 points; allowed"),
        (plots.lines, {"a": flat}, "landscape 'a': 11 × 11 points; allowed: a line"),
        (plots.lines, {"a": drawn(np.full(3, np.nan))}, "landscape 'a': no finite point"),
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
