"""Small models for the tests of landscapes, and their losses written apart from the module's."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatbench.landscape import loss_landscape, random_directions
from flatbench.sharpness import loss_surface
from tests.losses import D


def conv_net(seed=0):
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


def images(n=12):
    g = torch.Generator().manual_seed(5)
    return torch.randn(n, 1, 6, 6, generator=g, dtype=D), torch.randint(4, (n,), generator=g)


def moved(model, *steps):
    """A copy whose parameters have moved by each factor times its flat vector."""
    twin = copy.deepcopy(model)
    flat = nn.utils.parameters_to_vector(twin.parameters())
    for factor, vector in steps:
        flat = flat + factor * vector
    nn.utils.vector_to_parameters(flat.detach(), twin.parameters())
    return twin


def loss_of(model, x, y):
    with torch.no_grad():
        return float(cross_entropy(model(x), y))


class Bowl(nn.Module):
    """Outputs ½ wᵀAw for every example."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.w = nn.Parameter(torch.zeros(len(matrix), dtype=D))

    def forward(self, x):
        return (0.5 * self.w @ self.matrix @ self.w).expand(len(x))


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


def interrupted(after):
    """A loss that raises KeyboardInterrupt when it is called once more than ``after`` times."""
    calls = []

    def loss(outputs, targets):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return cross_entropy(outputs, targets)

    return loss, calls
