"""Slices of the loss against the perturbed model itself and closed forms."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from flatbench.landscape import Directions, line_direction, loss_landscape, random_directions
from flatbench.sharpness import loss_surface
from tests.landscapes import Bowl, conv_net, images, loss_of, moved, run
from tests.losses import D


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

    vectors = Directions("random", torch.eye(2, dtype=D), ("a", "b"), 0, "")
    surface = loss_surface(model, cliff, torch.zeros(2, 1), torch.zeros(2))
    found = loss_landscape(surface, vectors, [0, 1, 2])
    np.testing.assert_array_equal(found.losses, [0, 0.5, np.nan])
    assert found.complete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": []}, r"alphas must be finite numbers in ascending order, got \[\]"),
        ({"alphas": [0, 0]}, "alphas must be finite numbers"),
        ({"alphas": [1, 0]}, r"alphas must be .*, got \[1., 0.\]"),
        ({"alphas": [[1.0]]}, "alphas must be finite numbers"),
        ({"betas": [0, np.nan]}, "betas must be finite numbers"),
        ({"batchnorm": "off"}, "must be one of 'eval', 'train', 'recompute', got 'off'"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        run(conv_net(), None, **changes)
