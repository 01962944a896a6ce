"""A row's optimizer: what it is built of, its groups, and what is refused in one line."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from flatbench import cli, data
from flatbench.errors import UsageError
from flatbench.optim import SAM
from flatbench.protocols.cases import grid
from flatbench.training import optimizers, setup, trainer
from flatbench.training.bygroup import ByGroup
from flatbench.training.run import snapshot
from flatbench.training.step import rate_factor, set_learning_rates
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FOREIGN = Path(__file__).parent / "foreign"
STEPS = 10
SGD = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW = {"optimizer": "adamw", "lr": 0.002, "weight_decay": 0.01}


def case(folder, row, **sections):
    """The tiny protocol's case of a row, with the files of somebody else's beside it."""
    for file in FOREIGN.glob("*.py"):
        shutil.copy(file, folder)
    return grid(tiny.protocol(folder, tiny.table(optimizers={"row": row}, **sections)))[0]


class Network(nn.Sequential):
    """A parameter of each dimension."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
        self.to(memory_format=torch.channels_last)


def built(folder, row, **sections):
    return setup.build_optimizer(case(folder, row, **sections), Network(), STEPS)


def gradients(model, seed):
    chance = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=chance))


def same(record):
    """What a record says, but for the names of things."""
    said = record.without_timings()
    return {key: said[key] for key in ("history", "sharpness", "status", "gradient_evaluations")}


def state(optimizer, model):
    return copy.deepcopy(([p.detach() for p in model.parameters()], optimizer.state_dict()))


def assert_same(one, two):
    torch.testing.assert_close(one, two, rtol=0, atol=0)


# --- options


@pytest.mark.parametrize(
    ("short", "reference"),
    [
        (SGD, "torch.optim:SGD"),
        ({**SGD, "rho": 0.05}, "torch.optim:SGD"),
        (ADAMW, "torch.optim:AdamW"),
        ({**ADAMW, "betas": [0.8, 0.9], "rho": 0.05, "adaptive": True}, "torch.optim:AdamW"),
    ],
)
def test_a_reference_to_torch_trains_as_its_short_name(tmp_path, short, reference):
    one = trainer.train(case(tmp_path, short))
    two = trainer.train(case(tmp_path, {**short, "optimizer": reference}))
    assert same(one) == same(two)


def test_options_reach_the_optimizer_and_override_nothing_else(tmp_path):
    row = {**ADAMW, "options": {"eps": 1e-3, "amsgrad": True, "betas": [0.5, 0.6]}}
    (group,) = built(tmp_path, row).optimizer.param_groups
    wanted = {"eps": 1e-3, "amsgrad": True, "betas": (0.5, 0.6), "lr": 0.002, "weight_decay": 0.01}
    assert {key: group[key] for key in wanted} == wanted


def test_torchs_own_classes_are_fused_and_those_of_others_get_nothing_unasked(tmp_path):
    assert built(tmp_path, SGD).optimizer.param_groups[0]["fused"]
    unfused = built(tmp_path, {**SGD, "options": {"foreach": True}}).optimizer.param_groups[0]
    assert not unfused["fused"]
    for rho in ({}, {"rho": 0.05}):  # the class asserts it
        built(tmp_path, {"optimizer": "./lion.py:Fused", "lr": 0.01, **rho})


def test_a_function_may_stand_for_a_class(tmp_path):
    made = built(tmp_path, {"optimizer": "./lion.py:made", "options": {"lr": 0.5}})
    assert type(made.optimizer).__name__ == "Lion"
    assert made.rates == [0.5]


@pytest.mark.parametrize("base", ["./lion.py:Lion", "lion_pytorch:Lion", "torch.optim:RMSprop"])
def test_rho_over_any_optimizer(tmp_path, base):
    made = built(tmp_path, {"optimizer": base, "lr": 0.01, "rho": 0.3, "adaptive": True})
    assert isinstance(made.optimizer, SAM)
    (group,) = made.optimizer.param_groups
    assert (group["rho"], group["adaptive"], group["lr"]) == (0.3, True, 0.01)


# --- learning rates


def test_each_group_keeps_its_ratio(tmp_path):
    run = case(tmp_path, {**SGD, "groups": "./groups.py:rates"})
    prepared = setup.prepare(run, data.load(run.protocol.data))
    assert prepared.rates == [0.2, 0.05]
    set_learning_rates(prepared, rate_factor(run, 1.0))  # half of the cosine
    groups = prepared.optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.025])
    set_learning_rates(prepared, rate_factor(run, 1.5))
    assert groups[0]["lr"] == pytest.approx(4 * groups[1]["lr"])


def test_without_a_learning_rate_there_is_no_schedule(tmp_path):
    row = {"optimizer": "./lion.py:Rateless"}
    with pytest.raises(UsageError, match=r"row: \./lion\.py:Rateless has no lr: schedule must be"):
        built(tmp_path, row)
    warm_up = {"epochs": 2, "batch_size": 64, "warmup_epochs": 1, "schedule": "constant"}
    with pytest.raises(UsageError, match='got "constant" and 1'):
        built(tmp_path, row, training=warm_up)
    record = trainer.train(case(tmp_path, {**row, "schedule": "constant"}))
    assert record.status == "completed"
    assert [epoch.learning_rate for epoch in record.history] == [0.0, 0.0]


def test_a_schedule_that_would_not_be_felt_is_refused(tmp_path):
    row = {"optimizer": "./sam.py:Deaf", "lr": 0.1}
    with pytest.raises(UsageError, match=r"Deaf does not follow the lr of its param_groups: sched"):
        built(tmp_path, row)
    built(tmp_path, {**row, "schedule": "constant"})


# --- groups


def test_one_group_of_all_is_as_none(tmp_path):
    one = trainer.train(case(tmp_path, SGD))
    two = trainer.train(case(tmp_path, {**SGD, "groups": "./groups.py:all_in_one"}))
    assert same(one) == same(two)


def in_hand(model, rest):
    """Muon on matrices and AdamW on the rest, as two optimizers."""
    muon = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.02)
    return [muon, torch.optim.AdamW([p for p in model.parameters() if p.ndim != 2], **rest)]


@pytest.mark.parametrize("function", ["matrices", "matrices_by_class"])
def test_muon_for_matrices_and_adamw_for_the_rest(tmp_path, function):
    ours, theirs = Network(), Network()
    run = case(tmp_path, {**ADAMW, "groups": f"./groups.py:{function}"})
    optimizer = setup.build_optimizer(run, ours, STEPS).optimizer
    assert isinstance(optimizer, ByGroup)
    both = in_hand(theirs, {"lr": 0.002, "weight_decay": 0.01, "fused": True})
    for seed in range(3):
        gradients(ours, seed)
        gradients(theirs, seed)
        for group, other in zip(optimizer.param_groups, both, strict=True):
            group["lr"] *= 0.5  # as a schedule does
            other.param_groups[0]["lr"] *= 0.5
        optimizer.step()
        for other in both:
            other.step()
    assert_same(list(ours.parameters()), list(theirs.parameters()))
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours.parameters())


def test_a_group_with_an_optimizer_of_its_own_has_none_of_the_rows_options(tmp_path):
    optimizer = built(tmp_path, {**SGD, "groups": "./groups.py:two_of_sgd"}).optimizer
    own, rest = optimizer.param_groups
    assert (own["lr"], own["momentum"], own["weight_decay"]) == (0.2, 0, 0)
    assert (rest["lr"], rest["momentum"], rest["weight_decay"]) == (0.05, 0.9, 5e-4)


@pytest.mark.parametrize("function", ["matrices", "adagrad_for_matrices"])
@pytest.mark.parametrize("rho", [{}, {"rho": 0.05}])
def test_the_state_of_groups_comes_back(tmp_path, rho, function):
    run = case(tmp_path, {**ADAMW, "groups": f"./groups.py:{function}", **rho})
    models, made = [Network(), Network()], []
    for model in models:
        made.append(setup.build_optimizer(run, model, STEPS).optimizer)

    def steps(which, seeds):
        for seed in seeds:
            gradients(models[which], seed)
            if rho:
                made[which].step(lambda: gradients(models[which], 100))
            else:
                made[which].step()

    steps(0, range(3))
    weights, saved = state(made[0], models[0])
    assert len(saved["state"]) == 6  # weight and bias of three layers
    with torch.no_grad():
        for p, w in zip(models[1].parameters(), weights, strict=True):
            p.copy_(w)
    made[1].load_state_dict(saved)
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] *= 0.3  # reaches the members after a load, too
    for which in (0, 1):
        steps(which, range(3, 6))
    assert_same(state(made[0], models[0]), state(made[1], models[1]))
    again = copy.deepcopy(made[0])
    assert len(again.state_dict()["state"]) == 6


def test_rho_over_groups_is_one_perturbation_of_them_all(tmp_path):
    model = Network()
    run = case(tmp_path, {**ADAMW, "groups": "./groups.py:matrices", "rho": 0.3})
    optimizer = setup.build_optimizer(run, model, STEPS).optimizer
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    gradients(model, 0)
    optimizer.first_step()
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.3, rel=1e-4)
    optimizer.second_step()
    assert {type(member) for member, _ in optimizer.base_optimizer.members} == {
        torch.optim.Muon,
        torch.optim.AdamW,
    }


def test_train_and_eval_reach_the_members_through_sam(tmp_path):
    row = {
        "optimizer": "schedulefree:AdamWScheduleFree",
        "lr": 0.01,
        "rho": 0.05,
        "groups": "./groups.py:matrices",
        "schedule": "constant",
    }
    optimizer = built(tmp_path, row).optimizer
    _, rest = optimizer.param_groups
    modes = []
    for change in (optimizer.train, optimizer.eval):
        change()
        modes.append(rest["train_mode"])
    assert modes == [True, False]


def test_a_frozen_parameter_may_be_in_no_group(tmp_path):
    model = Network()
    for name, p in model.named_parameters():
        p.requires_grad_(not name.endswith("bias"))
    run = case(tmp_path, {**SGD, "groups": "./groups.py:without_biases"})
    setup.build_optimizer(run, model, STEPS)


# --- CUDA graphs


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (SGD, None),  # fused
        ({**SGD, "rho": 0.05}, None),
        ({**SGD, "perturbation": {"method": "gsam", "rho": 0.1}}, "a step of GSAM"),
        ({**SGD, "options": {"foreach": True}}, "a step of SGD"),
        ({"optimizer": "torch.optim:RMSprop"}, "a step of RMSprop"),
        ({"optimizer": "torch.optim:RMSprop", "rho": 0.05}, "SAM's step over RMSprop"),
        ({"optimizer": "./lion.py:Lion"}, "a step of Lion"),
        ({"optimizer": "./lion.py:Lion", "rho": 0.05}, "SAM's step over Lion"),
        ({"optimizer": "./sam.py:Noisy", "lr": 0.1}, "a step of Noisy"),
        ({**ADAMW, "groups": "./groups.py:matrices"}, "a step of Muon"),
        ({**SGD, "groups": "./groups.py:two_of_sgd"}, None),
    ],
)
def test_what_a_graph_captures_is_known_to_be_right(tmp_path, row, reason):
    found = optimizers.why_no_graph(built(tmp_path, row).optimizer)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize("name", ["RMSprop", "Adam", "NAdam"])
def test_torchs_optimizers_are_captured_where_they_can_be(name):
    optimizer = getattr(torch.optim, name)(Network().parameters())
    assert optimizers.why_no_graph(optimizer) is not None
    optimizer.param_groups[0]["capturable"] = True
    assert optimizers.why_no_graph(optimizer) is None


def test_what_cuda_alone_takes_does_not_stop_a_run_on_the_cpu(tmp_path):
    built(tmp_path, {"optimizer": "torch.optim:RMSprop", "options": {"capturable": True}})


def test_what_steps_by_a_closure_is_not_captured(tmp_path):
    run = case(tmp_path, {"optimizer": "torch.optim:LBFGS", "lr": 0.1})
    prepared = setup.prepare(run, data.load(run.protocol.data))
    assert setup.why_no_graph(prepared) == (
        "torch.optim:LBFGS evaluates gradients by a closure of its own"
    )


def test_rates_on_the_device_follow_the_schedule(tmp_path):
    run = case(tmp_path, {**SGD, "groups": "./groups.py:rates"})
    prepared = setup.prepare(run, data.load(run.protocol.data))
    optimizers.use_device_rates(prepared.optimizer, torch.device("cpu"))
    tensors = [group["lr"] for group in prepared.optimizer.param_groups]
    set_learning_rates(prepared, 0.5)
    assert [t.item() for t in tensors] == pytest.approx([0.1, 0.025])
    put_back = snapshot(prepared)
    set_learning_rates(prepared, 0.1)
    put_back()
    rates = [group["lr"].item() for group in prepared.optimizer.param_groups]
    assert rates == pytest.approx([0.1, 0.025])


# --- refusals


GROUPS = r"protocol tiny: optimizers\.row\.groups: "
REFUSED = {
    "unknown option": (
        {**SGD, "options": {"momentm": 0.9}},
        r"protocol tiny: optimizers\.row\.options: 'momentm' is unknown: sgd takes lr, momentum, ",
    ),
    "unknown option of a reference": (
        {"optimizer": "./lion.py:Lion", "momentum": 0.9},
        r"optimizers\.row\.options: 'momentum' is unknown: \./lion\.py:Lion takes lr, betas, weigh",
    ),
    "missing option": (
        {"optimizer": "./sam.py:SAM", "lr": 0.1},
        r"row\.options: 'base_optimizer' is missing",
    ),
    "value": (
        {"optimizer": "./lion.py:Lion", "options": {"lr": -1.0}},
        r"row\.options: \./lion\.py:Lion: ValueError: lr must be above 0, got -1\.0",
    ),
    "keywords passed on": (
        {"optimizer": "./lion.py:Greedy", "options": {"size": 3}},
        r"row\.options: \./lion\.py:Greedy: TypeError: size is not mine",
    ),
    "no such file": ({"optimizer": "./loin.py:Lion"}, r"row\.optimizer: .*: there is no file"),
    "no such class": (
        {"optimizer": "./lion.py:Loin"},
        r"no 'Loin' in it \(did you mean 'Lion'\?\)",
    ),
    "no such class in options": (
        {"optimizer": "./sam.py:SAM", "options": {"base_optimizer": {"ref": "torch.optim:SDG"}}},
        r"row\.options\.base_optimizer: 'torch\.optim:SDG': there is no 'SDG'",
    ),
    "no optimizer": (
        {"optimizer": "./lion.py:not_one"},
        r"row\.optimizer: \./lion\.py:not_one must give a torch\.optim\.Optimizer, got 'no opt",
    ),
    "a closure under rho": (
        {"optimizer": "torch.optim:LBFGS", "rho": 0.05},
        r"row: rho needs an optimizer that steps without a closure: torch\.optim:LBFGS needs",
    ),
    "SAM under rho": (
        {
            "optimizer": "./sam.py:Evaluating",
            "rho": 0.05,
            "options": {"base_optimizer": {"ref": "torch.optim:SGD"}},
        },
        r"row\.options: rho cannot perturb for \./sam\.py:Evaluating: it has an option 'rho'",
    ),
    "a rho of its own": (
        {"optimizer": "torch.optim:Adadelta", "rho": 0.05},
        "it has an option 'rho' of its own",
    ),
    "a function under rho": (
        {"optimizer": "./lion.py:made", "rho": 0.05},
        "TypeError: base_optimizer must be a class",
    ),
    "momentum-sam without a momentum": (
        {
            "optimizer": "torch.optim:Adafactor",
            "perturbation": {"method": "momentum-sam", "rho": 0.1},
        },
        "row: a step raises RuntimeError: MomentumSAM needs a base that keeps its momentum, got",
    ),
    "a function that asks for what the row has not": (
        {**ADAMW, "groups": "./groups.py:asks_for_momentum"},
        GROUPS + r"'momentum' is missing: \./groups\.py:asks_for_momentum takes momentum",
    ),
    "Muon on vectors": ({"optimizer": "torch.optim:Muon"}, "ValueError: Muon only supports 2D"),
    "a parameter in no group": (
        {**SGD, "groups": "./groups.py:without_biases"},
        GROUPS + r"\./groups\.py:without_biases: parameter 0\.bias is in no group",
    ),
    "in two groups": (
        {**SGD, "groups": "./groups.py:twice"},
        r"parameter 0\.weight is in more than one group",
    ),
    "not the model's": (
        {**SGD, "groups": "./groups.py:of_another_model"},
        r"group 0 holds \(2, 3\), no parameter of the model",
    ),
    "no list": ({**SGD, "groups": "./groups.py:no_list"}, "must return a list of parameter gro"),
    "no dicts": ({**SGD, "groups": "./groups.py:no_groups"}, 'group 0 must be a dict with "params'),
    "a function that raises": (
        {**SGD, "groups": "./groups.py:raises"},
        GROUPS + r"\./groups\.py:raises: RuntimeError: no idea",
    ),
    "no such function": ({**SGD, "groups": "./groups.py:matrixes"}, "did you mean 'matrices"),
    "an option of a group": (
        {**ADAMW, "groups": "./groups.py:wrong_option"},
        GROUPS + r"group 0: 'momentm' is unknown: torch\.optim:Muon takes lr, ",
    ),
    "a group with a closure": (
        {**ADAMW, "groups": "./groups.py:with_lbfgs"},
        GROUPS + r"group 0: torch\.optim:LBFGS cannot step a group of its own: .*closure",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_one_line(tmp_path, name):
    row, message = REFUSED[name]
    with pytest.raises(UsageError, match=message) as caught:
        built(tmp_path, row)
    assert "\n" not in str(caught.value)


def test_nothing_trains_before_all_is_known_to_build(tmp_path, capsys):
    rows = {"sgd": SGD, "lion": {"optimizer": "./lion.py:Lion", "options": {"betta": [0.9, 0.99]}}}
    case(tmp_path, SGD)
    path = tiny.write(tmp_path, tiny.table(optimizers=rows))
    code = cli.main(
        ["run", "--protocol", str(path), "--device", "cpu", "--results", str(tmp_path / "out")]
    )
    said = capsys.readouterr()
    assert code == 2
    assert said.err.count("\n") == 1
    assert "optimizers.lion.options: 'betta' is unknown: ./lion.py:Lion takes lr, betas" in said.err
    assert not list(tmp_path.rglob("*.json"))


def test_a_check_leaves_no_trace_in_torchs_generator(tmp_path):
    row = {"optimizer": "./sam.py:Noisy", "lr": 0.1}
    run = case(tmp_path, row)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    setup.check([run], {id(run.protocol): data.load(run.protocol.data)})
    assert torch.equal(torch.get_rng_state(), before)
