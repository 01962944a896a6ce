"""Muon over filters: torch's own on the same numbers as matrices, and its groups."""

import copy

import pytest
import torch
from torch import nn

from flatbench.models import resnet18
from flatbench.optim import SAM
from flatbench.optim.muon import FilterMuon, groups
from flatbench.training import setup
from flatbench.training.bygroup import ByGroup
from tests.test_optimizers import case

FORMATS = [torch.contiguous_format, torch.channels_last]
OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}


def gradient(model, seed):
    torch.manual_seed(seed)
    model.zero_grad()
    (model(torch.randn(4, 3, 6, 6)) ** 2).sum().backward()


def network(memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    return nn.Conv2d(3, 8, 3, bias=False).to(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_it_is_torchs_on_a_matrix_with_a_row_a_filter(memory_format):
    model = network(memory_format)
    matrix = nn.Parameter(model.weight.detach().flatten(1).clone())
    ours, torchs = FilterMuon([model.weight], **OPTIONS), torch.optim.Muon([matrix], **OPTIONS)
    before = model.weight.data_ptr()
    for seed in range(3):
        gradient(model, seed)
        matrix.grad = model.weight.grad.flatten(1).clone()
        for optimizer in (ours, torchs):
            optimizer.param_groups[0]["lr"] *= 0.5  # as a schedule does
            optimizer.step()
    assert model.weight.data_ptr() == before
    moved = (matrix - network().weight.flatten(1)).norm()
    apart = (matrix - model.weight.flatten(1)).norm()
    assert moved > 0.01
    # bf16 rounds within; the columns' order is another one in channels_last memory
    assert apart <= (0.01 * moved if memory_format is torch.channels_last else 0)


@pytest.mark.parametrize("again", ["load", "copy"])
def test_its_state_comes_back(again):
    one, two = network(), network()
    first, second = FilterMuon([one.weight], **OPTIONS), FilterMuon([two.weight], **OPTIONS)
    gradient(one, 0)
    first.step()
    if again == "load":
        two.load_state_dict(one.state_dict())
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    else:
        two, second = copy.deepcopy((one, first))
        assert second.param_groups[0]["params"][0] is two.weight
    for model, optimizer in ((one, first), (two, second)):
        gradient(model, 1)
        optimizer.step()
    assert torch.equal(one.weight, two.weight)
    (state,) = first.state_dict()["state"].values()
    assert state["momentum_buffer"].abs().sum() > 0


def test_a_parameter_without_a_gradient_stays():
    model = network()
    before = model.weight.detach().clone()
    FilterMuon([model.weight], **OPTIONS).step()
    assert torch.equal(model.weight, before)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"two or more dimensions, got torch\.Size\(\[3\]\)"):
        FilterMuon([nn.Parameter(torch.ones(3))])


def test_its_closure_is_called_with_gradients_enabled():
    model = network()

    def closure():
        gradient(model, 0)
        return torch.tensor(7.0)

    assert FilterMuon([model.weight], **OPTIONS).step(closure) == 7.0


def test_hidden_filters_are_its_and_the_first_and_last_layer_are_not():
    model = resnet18.build(width=2, in_channels=1, classes=10)
    muon, rest = groups(model, lr=0.1, weight_decay=0.2)
    names = {p: name for name, p in model.named_parameters()}
    assert all(p.ndim == 4 for p in muon["params"])
    assert len(muon["params"]) + len(rest["params"]) == len(names)
    left = [names[p] for p in rest["params"] if p.ndim > 1]
    assert left == ["stem.0.weight", "classifier.weight"]
    assert (muon["lr"], muon["weight_decay"]) == (0.1, 0.2)


@pytest.mark.parametrize("rho", [None, 0.05])
def test_one_rate_of_the_row_serves_both_and_sam_perturbs_all(tmp_path, rho):
    row = {
        "base": "adamw",
        "lr": 0.03,
        "weight_decay": 0.2,
        "groups": "flatbench.optim.muon:groups",
    }
    run = case(tmp_path, row | ({"rho": rho} if rho else {}))
    model = resnet18.build(width=2, in_channels=1, classes=10)
    made = setup.build_optimizer(run, model, 4).optimizer
    assert isinstance(made, SAM if rho else ByGroup)
    assert [(g["lr"], g["weight_decay"]) for g in made.param_groups] == [(0.03, 0.2)] * 2
    base = made.base_optimizer if rho else made
    assert [type(member) for member, _ in base.members] == [FilterMuon, torch.optim.AdamW]
