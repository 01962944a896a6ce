"""Functions that part a model's parameters into groups."""

import torch


def of_dimension(model, keep):
    return [p for p in model.parameters() if keep(p.ndim)]


def matrices(model):
    """Muon for matrices, the row's optimizer for all else."""
    return [
        {
            "params": of_dimension(model, lambda n: n == 2),
            "optimizer": "torch.optim:Muon",
            "lr": 0.02,
        },
        {"params": of_dimension(model, lambda n: n != 2)},
    ]


def matrices_by_class(model):
    first, rest = matrices(model)
    return [{**first, "optimizer": torch.optim.Muon}, rest]


def rates(model):
    return [
        {"params": of_dimension(model, lambda n: n == 4), "lr": 0.2},
        {"params": of_dimension(model, lambda n: n != 4)},
    ]


def all_in_one(model):
    return [{"params": model.parameters()}]


def two_of_sgd(model):
    """Both groups by one class, one of them with options of its own alone."""
    return [
        {"params": of_dimension(model, lambda n: n == 4), "optimizer": "sgd", "lr": 0.2},
        {"params": of_dimension(model, lambda n: n != 4)},
    ]


def adagrad_for_matrices(model):
    """Its state is there before the first step."""
    first, rest = matrices(model)
    return [{**first, "optimizer": "torch.optim:Adagrad"}, rest]


def without_biases(model):
    return [{"params": [p for name, p in model.named_parameters() if not name.endswith("bias")]}]


def twice(model):
    every = list(model.parameters())
    return [{"params": every}, {"params": every[:1]}]


def of_another_model(model):
    return [{"params": [*model.parameters(), torch.nn.Parameter(torch.ones(2, 3))]}]


def no_list(model):
    return None


def no_groups(model):
    return list(model.parameters())


def wrong_option(model):
    first, rest = matrices(model)
    return [{**first, "momentm": 0.9}, rest]


def with_lbfgs(model):
    first, rest = matrices(model)
    return [{**first, "optimizer": "torch.optim:LBFGS"}, rest]


def raises(model):
    raise RuntimeError("no\nidea")


def asks_for_momentum(model, momentum):
    return [
        {"params": list(model.parameters()), "optimizer": "sgd", "lr": 0.1, "momentum": momentum}
    ]
