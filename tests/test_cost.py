"""What an optimizer costs beside another one: bytes that are known, and the form of the times."""

import types
from collections import UserDict, deque
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from flatbench.errors import UsageError
from flatbench.execution import Machine
from flatbench.optim import SAM
from flatbench.protocols.cases import Case
from flatbench.study import cost
from flatbench.study.cost import beside, state_bytes
from flatbench.training.bygroup import ByGroup, Rule
from tests import tiny

SIZE = 200
STEPS = 2 * 4  # a float32 scalar a parameter tensor


def held(make, model=None):
    """The bytes after two steps on two parameters of 100 numbers each."""
    weights = [nn.Parameter(torch.ones(100)), nn.Parameter(torch.ones(25, 4))]
    optimizer = make(weights)
    for _ in range(2):

        def closure():
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in weights)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)
    return state_bytes(optimizer, model)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 4 * SIZE),
        (lambda p: torch.optim.Adam(p, lr=0.1), 8 * SIZE + STEPS),
        (lambda p: torch.optim.AdamW(p, lr=0.1), 8 * SIZE + STEPS),
        (lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True), 12 * SIZE + STEPS),
    ],
)
def test_bytes_of_torchs_own(make, size):
    assert held(make) == size


@pytest.mark.parametrize(
    ("base", "options", "size"),
    [
        (torch.optim.SGD, {}, 0),
        (torch.optim.SGD, {"momentum": 0.9}, 4 * SIZE),
        (torch.optim.Adam, {}, 8 * SIZE + STEPS),
    ],
)
def test_our_sam_holds_its_base_a_copy_of_the_weights_and_its_outcome(base, options, size):
    # gradient_norm and found_inf are float32, skipped_steps is int64
    outcome = 4 + 4 + 8
    assert held(lambda p: SAM(p, base, lr=0.1, **options)) == size + 4 * SIZE + outcome


class Base(torch.optim.Optimizer):
    """One that steps in no direction; what it holds is the test's."""

    def __init__(self, params, hold):
        super().__init__(params, {})
        hold(self, self.param_groups[0]["params"])

    def step(self, closure=None):
        """Move nothing."""


@dataclass
class Average:
    """A user's own class for a part of the state."""

    values: torch.Tensor


class Slotted:
    __slots__ = "values"  # noqa: PLC0205 - a string is one name, and allowed

    def __init__(self):
        self.values = torch.zeros(7)


class Shared:
    values = torch.zeros(5)


class Made(UserDict):
    """Its values are tables that nobody keeps: the next one may lie where the last one was."""

    def __init__(self, values):
        self.all = lambda: [{"values": values}]

    def values(self):
        return self.all()


def _inner(self, params):
    self.base = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    self.step = self.base.step


def _two(self, params):
    # neither is in the other's reach, and none has an attribute that outlives the walk
    self.inner = [Base([p], _one) for p in params]


def _one(self, params):
    self.buffer = torch.zeros_like(params[0])


def _views(self, params):
    self.flat = torch.zeros(50)
    self.views = [self.flat[:10], self.flat.view(5, 10), params[0].view(10, 10), params[1].detach()]


def _cycle(self, params):
    self.again = {"myself": [self]}
    self.again["table"] = self.again
    self.buffer = torch.zeros(3)


def _anywhere(self, params):
    self.parts = {"a": (torch.zeros(1), [torch.zeros(2)]), "b": deque([torch.zeros(4)])}
    self.average = Average(torch.zeros(8))
    self.slotted = Slotted()
    self.network = nn.BatchNorm1d(3)  # weight, bias, mean, variance; and an int64 count


def _nothing(self, params):
    self.hook = lambda: params
    self.kind, self.module = Shared, types.ModuleType("shared")
    self.module.values = torch.zeros(5)
    self.device, self.chance = torch.device("cpu"), torch.Generator()


def _made_when_asked(self, params):
    self.made = [Made(torch.zeros(2)) for _ in range(4)]


@pytest.mark.parametrize(
    ("hold", "size"),
    [
        (_inner, 4 * SIZE),
        (_two, 4 * SIZE),
        (_views, 4 * 50),
        (_cycle, 4 * 3),
        (_anywhere, 4 * (1 + 2 + 4 + 8 + 7 + 12) + 8),
        (_nothing, 0),
        (_made_when_asked, 4 * 8),
    ],
)
def test_bytes_are_found_wherever_they_are_held_and_once(hold, size):
    assert held(lambda p: Base(p, hold)) == size


def test_members_that_step_groups_of_their_own():
    def rule(cls, **options):
        made = type("Component", (), {"target": cls, "reference": cls.__name__})
        return Rule(made, "here", options)

    def make(params):
        rules = [rule(torch.optim.SGD, lr=0.1, momentum=0.9), rule(torch.optim.Adam, lr=0.1)]
        return ByGroup([{"params": [p]} for p in params], rules)

    assert held(make) == 4 * 100 + 8 * 100 + 4


def test_the_network_is_no_state_though_the_optimizer_holds_it():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def hold(self, params):
        self.model = model

    assert held(lambda p: Base(p, hold), model) == 0
    assert held(lambda p: Base(p, hold)) > 0


@pytest.fixture
def protocol(tmp_path):
    lbfgs = {"optimizer": "torch.optim:LBFGS", "options": {"lr": 0.1, "max_iter": 3}}
    rows = {"adam": tiny.ADAM, "adam+sam": {**tiny.ADAM, "rho": 0.05}}
    training = {"epochs": 2, "batch_size": 32, "schedule": "constant"}
    data = {"name": "digits", "train_examples": 80}
    table = tiny.table(data=data, optimizers={**rows, "lbfgs": lbfgs}, training=training)
    return tiny.protocol(tmp_path, table)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(cost, "ROUNDS", 3)
    monkeypatch.setattr(cost, "STEPS", 2)


def case(protocol, row):
    return Case(protocol, "resnet18", row, 0)


def test_beside_adam(protocol, short):
    threads = torch.get_num_threads()
    found = beside(case(protocol, "adam+sam"), case(protocol, "adam"), Machine("cpu"))
    assert torch.get_num_threads() == threads
    assert (found.name, found.other) == ("adam+sam", "adam")
    assert 0 < found.low <= found.ratio <= found.high
    assert found.other_state == pytest.approx(8, abs=0.1)
    assert found.state == pytest.approx(12, abs=0.1)  # SAM keeps a copy of the weights
    assert (found.gradients, found.other_gradients) == (2, 1)
    said = found.sentence()
    assert said.startswith("a step of adam+sam takes ")
    assert said.endswith(
        "its state has 12.0 bytes a parameter, adam's 8.0; gradients a step: 2, adam's 1"
    )


def test_gradients_that_a_closure_evaluates_are_counted(protocol, short):
    found = beside(case(protocol, "lbfgs"), case(protocol, "adam"), Machine("cpu"))
    assert (found.gradients, found.other_gradients) == (3, 1)


def test_each_round_times_both_and_every_other_one_begins_with_the_other(protocol, monkeypatch):
    """The medians and quartiles are of the rounds' own ratios."""
    monkeypatch.setattr(cost, "ROUNDS", 5)
    turns = []

    def steps(run):
        turns.append(run.case.optimizer)
        rounds = (len(turns) - 3) // 2  # two have warmed up
        return ((2.0 + rounds) * 10**rounds if turns[-1] == "adam+sam" else 10.0**rounds), 1.0

    monkeypatch.setattr(cost, "_steps", steps)
    found = beside(case(protocol, "adam+sam"), case(protocol, "adam"), Machine("cpu"))
    assert turns[:2] == ["adam+sam", "adam"]
    assert turns[2:6] == ["adam", "adam+sam", "adam+sam", "adam"]
    assert (found.low, found.ratio, found.high) == (2.5, 4.0, 5.5)


def test_both_see_the_same_batches_and_nothing_but_whole_ones(protocol, monkeypatch):
    seen = {"adam": [], "adam+sam": []}
    prepare = cost.prepare

    def prepared(case, dataset):
        run = prepare(case, dataset)
        step = run.step
        run.step = lambda batch: (seen[case.optimizer].append(batch.tolist()), step(batch))[1]
        return run

    monkeypatch.setattr(cost, "prepare", prepared)
    monkeypatch.setattr(cost, "ROUNDS", 2)
    beside(case(protocol, "adam+sam"), case(protocol, "adam"), Machine("cpu"))
    assert seen["adam"] == seen["adam+sam"]
    assert len(seen["adam"]) == 3 * cost.STEPS
    assert {len(set(batch)) for batch in seen["adam"]} == {32}


def test_one_thread_and_what_it_was_comes_back_though_it_fails(protocol, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found = []

    def fails(case, dataset):
        found.append(torch.get_num_threads())
        raise UsageError("no such optimizer")

    monkeypatch.setattr(cost, "prepare", fails)
    try:
        with pytest.raises(UsageError):
            beside(case(protocol, "adam"), case(protocol, "adam"), Machine("cpu"))
        assert found == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
