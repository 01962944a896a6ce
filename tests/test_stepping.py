"""How any optimizer steps: what it is asked for, what is counted, and what a record says."""

import math

import pytest
import torch

from flatbench import data
from flatbench.errors import UsageError
from flatbench.training import setup, step, stepping, trainer
from tests.test_optimizers import ADAMW, SGD, Network, built, case, same

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 10
THEIRS = {"base_optimizer": {"ref": "torch.optim:SGD"}, "lr": 0.05, "momentum": 0.9}
SAMS = {
    "pytorch_optimizer": {"optimizer": "pytorch_optimizer:SAM", "options": THEIRS},
    "half-steps": {"optimizer": "./sam.py:SAM", "options": THEIRS},
    "without gradients turned on": {"optimizer": "./sam.py:Careless", "options": THEIRS},
}
LBFGS = {"optimizer": "torch.optim:LBFGS", "lr": 0.1, "options": {"max_iter": 4}}
SCHEDULE_FREE = {
    "optimizer": "schedulefree:AdamWScheduleFree",
    "lr": 0.01,
    "schedule": "constant",
}
MUON = {**ADAMW, "groups": "./groups.py:matrices"}
PLAIN = {
    "Lion of one's own": {"optimizer": "./lion.py:Lion", "lr": 0.002},
    "lion_pytorch": {"optimizer": "lion_pytorch:Lion", "lr": 0.002},
    "RMSprop": {"optimizer": "torch.optim:RMSprop", "lr": 0.002},
    "Schedule-Free": SCHEDULE_FREE,
    "Muon": MUON,
}
OURS = {
    "Lion+SAM": {"optimizer": "./lion.py:Lion", "lr": 0.002, "rho": 0.05},
    "Schedule-Free+SAM": {**SCHEDULE_FREE, "rho": 0.05},
    "Muon+SAM": {**MUON, "rho": 0.05},
}


def prepared(folder, row, **sections):
    run = case(folder, row, **sections)
    made = setup.prepare(run, data.load(run.protocol.data))
    made.model.train()
    stepping.enter_training(made.optimizer)
    return made


def batch(size=64):
    return torch.arange(size)


class Watched:
    """Every call of the loss: the weights there, BatchNorm's statistics after it, the mode."""

    def __init__(self, run, monkeypatch):
        self.weights, self.statistics, self.gradients = [], [], []
        real = step.batch_loss

        def watch(run, images, labels):
            self.gradients.append([p.grad for p in run.model.parameters()])
            self.weights.append(vector(run.model))
            assert torch.is_grad_enabled()
            found = real(run, images, labels)
            self.statistics.append([b.clone() for b in run.model.buffers()])
            return found

        monkeypatch.setattr(step, "batch_loss", watch)


def vector(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


# --- all of them train


@pytest.mark.parametrize(
    ("row", "gradients"),
    [
        *(pytest.param(row, 1, id=name) for name, row in PLAIN.items()),
        *(pytest.param(row, 2, id=name) for name, row in (SAMS | OURS).items()),
        pytest.param({**SAMS["half-steps"], "optimizer": "./sam.py:Evaluating"}, 2, id="evaluates"),
    ],
)
def test_it_trains_from_its_protocol_alone_and_is_counted(tmp_path, row, gradients):
    training = {"epochs": 5, "batch_size": 64}
    record = trainer.train(case(tmp_path, row, training=training))
    assert record.status == "completed"
    assert record.history[-1].train_loss < 0.95 * record.history[0].train_loss
    # 200 images in batches of 64 are 4 steps
    assert [epoch.gradient_evaluations for epoch in record.history] == [4 * gradients] * 5
    assert record.gradient_evaluations == 20 * gradients


def test_lbfgs_is_counted_as_often_as_it_calls(tmp_path, monkeypatch):
    calls = []
    real = stepping.Passes.__call__

    def count(self):
        calls.append(self.count)
        return real(self)

    monkeypatch.setattr(stepping.Passes, "__call__", count)
    options = {"max_iter": 6, "line_search_fn": "strong_wolfe"}  # whose number of calls varies
    record = trainer.train(case(tmp_path, {**LBFGS, "options": options}))
    assert record.status == "completed"
    assert record.gradient_evaluations == len(calls)
    assert calls.count(0) == 8  # a first one a step
    assert len(calls) > 2 * 8
    assert record.history[-1].train_loss < record.history[0].train_loss


@pytest.mark.parametrize("name", SAMS)
def test_a_sam_of_others_ends_where_ours_does(tmp_path, monkeypatch, name):
    ours = prepared(tmp_path, {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "rho": 0.05})
    theirs = prepared(tmp_path, SAMS[name])
    seen = Watched(theirs, monkeypatch)
    start = vector(theirs.model)
    # A fourth step crosses a kink of ReLU on some CPUs, and rounding grows ten-thousandfold.
    for _ in range(3):
        one, two = ours.step(batch()), theirs.step(batch())
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert (vector(ours.model) - start).norm() > 0.1
    torch.testing.assert_close(vector(ours.model), vector(theirs.model), rtol=1e-3, atol=1e-4)
    for a, b in zip(ours.model.buffers(), theirs.model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    # ours were called as well, in turns: 4 calls a step
    for i in range(0, 12, 4):
        for at, perturbed in (seen.weights[i : i + 2], seen.weights[i + 2 : i + 4]):
            assert (perturbed - at).norm().item() == pytest.approx(0.05, rel=1e-3)


# --- what a closure does


@pytest.mark.parametrize("row", [*SAMS.values(), LBFGS, {**SGD, "rho": 0.05}])
def test_statistics_move_at_the_first_pass_of_a_step_only(tmp_path, monkeypatch, row):
    run = prepared(tmp_path, row)
    seen = Watched(run, monkeypatch)
    before = [b.clone() for b in run.model.buffers()]
    run.step(batch())
    assert len(seen.statistics) >= 2
    assert not torch.equal(seen.statistics[0][0], before[0])
    for later in seen.statistics[1:]:
        assert all(torch.equal(a, b) for a, b in zip(later, seen.statistics[0], strict=True))
    counts = [b for b in run.model.buffers() if b.ndim == 0]
    assert set(map(int, counts)) == {1}
    run.step(batch())
    assert set(map(int, counts)) == {2}  # it moves again


@pytest.mark.parametrize("row", [*SAMS.values(), LBFGS, {**SGD, "rho": 0.05}, SGD])
def test_every_pass_begins_without_gradients(tmp_path, monkeypatch, row):
    run = prepared(tmp_path, row)
    seen = Watched(run, monkeypatch)
    for _ in range(2):
        run.step(batch())
    assert all(gradient is None for gradients in seen.gradients for gradient in gradients)
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize("row", [*SAMS.values(), LBFGS])
def test_what_is_recorded_is_of_the_first_pass(tmp_path, row):
    run, plain = prepared(tmp_path, row), prepared(tmp_path, SGD)
    loss, hits, norm, count, _ = run.step(batch()).tolist()
    expected = plain.step(batch()).tolist()
    assert (loss, hits) == pytest.approx(expected[:2], rel=1e-5)
    assert norm == pytest.approx(expected[2], rel=1e-4)
    assert expected[3] == 1
    assert count > 1


def test_a_later_loss_that_is_not_finite_is_divergence(tmp_path, monkeypatch):
    real, passes = step.batch_loss, iter(range(1000))

    def overflow(*arguments):
        loss, logits = real(*arguments)
        # its gradient stays finite: nothing else shows it
        return (loss + math.inf if next(passes) == 9 else loss), logits

    monkeypatch.setattr(step, "batch_loss", overflow)
    record = trainer.train(case(tmp_path, SAMS["half-steps"]))
    assert record.reason == (
        "diverged in epoch 2 of 2: the loss of a later pass of a step is not finite"
    )
    assert len(record.history) == 1


def test_an_optimizer_that_blows_up_diverges(tmp_path):
    options = {**THEIRS, "lr": 1e20}
    record = trainer.train(case(tmp_path, {**SAMS["half-steps"], "options": options}))
    assert record.status == "diverged"
    assert record.reason is not None
    assert record.reason.endswith("is not finite")


# --- which kind it is


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        *((row, "plain") for row in PLAIN.values()),
        *((row, "re-evaluates") for row in (SAMS | OURS).values()),
        (LBFGS, "evaluates"),
        ({**SAMS["half-steps"], "optimizer": "./sam.py:Evaluating"}, "evaluates"),
        (SGD, "plain"),
        ({**SGD, "closure": "evaluates"}, "evaluates"),
        ({**SAMS["half-steps"], "closure": "re-evaluates"}, "re-evaluates"),
    ],
)
def test_the_kind_shows_in_one_step(tmp_path, row, kind):
    assert built(tmp_path, row).stepping == kind


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"optimizer": "./sam.py:Strange", "options": THEIRS},
            r'row: it can\'t be told how \./sam\.py:Strange steps; closure must be "evaluates" or '
            r'"re-evaluates": without a closure it raises RuntimeError: call set_closure first',
        ),
        ({"optimizer": "./sam.py:Still"}, "without a closure it moves nothing; with one it moves"),
        (
            {"optimizer": "./sam.py:Strange", "options": THEIRS, "closure": "evaluates"},
            r"row: closure = 'evaluates' does not fit \./sam\.py:Strange: it raises RuntimeError",
        ),
        (
            {"optimizer": "./lion.py:Lion", "closure": "evaluates"},
            "does not fit ./lion.py:Lion: it never calls the closure",
        ),
        ({**SGD, "rho": 0.05, "closure": "evaluates"}, "closure must be absent where rho is given"),
    ],
)
def test_what_cannot_be_told_is_one_line(tmp_path, row, message):
    with pytest.raises(UsageError, match=message) as caught:
        built(tmp_path, row)
    assert "\n" not in str(caught.value)


def test_the_row_has_the_last_word(tmp_path):
    """SGD by a closure that it calls once more, at the same weights."""
    row = {**SGD, "closure": "re-evaluates"}
    record = trainer.train(case(tmp_path, row))
    assert record.gradient_evaluations == 16
    assert built(tmp_path, SGD).stepping == "plain"


def test_a_trial_draws_nothing_from_torchs_generator(tmp_path):
    """The network's own first weights are drawn from it, and so would dropout be."""
    run, model = case(tmp_path, {"optimizer": "./sam.py:Noisy", "lr": 0.1}), Network()
    before = torch.get_rng_state()
    setup.build_optimizer(run, model, STEPS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trial_moves_no_weight_of_the_network(tmp_path):
    model = Network()
    before = vector(model)
    for row in (SAMS["half-steps"], LBFGS, MUON):
        setup.build_optimizer(case(tmp_path, row), model, STEPS)
    assert torch.equal(vector(model), before)


def test_weights_are_contiguous_where_an_optimizer_needs_that_alone(tmp_path):
    for row, is_contiguous in ((LBFGS, True), (SAMS["half-steps"], False), (SGD, False)):
        weights = prepared(tmp_path, row).model.parameters()
        weight = max(weights, key=torch.Tensor.numel)
        assert weight.ndim == 4
        assert weight.is_contiguous() is is_contiguous


# --- training and evaluation


def test_schedule_free_is_evaluated_and_saved_at_its_average(tmp_path):
    """As a plain loop with its train() and eval() does."""
    from safetensors.torch import load_file
    from schedulefree import AdamWScheduleFree

    run = case(tmp_path, SCHEDULE_FREE, training={"epochs": 2, "batch_size": 64})
    batches, real = [], data.batches
    with pytest.MonkeyPatch.context() as patch:

        def watch(*arguments):
            batches.append(list(real(*arguments)))
            return iter(batches[-1])

        patch.setattr(data, "batches", watch)
        record = trainer.train(run, weights=tmp_path / "weights")
    dataset = data.load(run.protocol.data)
    model = setup.build_model(run, dataset)
    labels = setup.training_labels(run, dataset)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.01)
    for epoch, drawn in zip(record.history, batches, strict=True):
        model.train()
        optimizer.train()
        for picked in drawn:
            optimizer.zero_grad()
            logits = model(dataset.normalise(dataset.train.images[picked]))
            torch.nn.functional.cross_entropy(logits, labels[picked]).backward()
            optimizer.step()
        optimizer.eval()
        assert epoch.test_loss == step.evaluate(model, dataset, dataset.test)[0]
    for name, tensor in load_file(tmp_path / "weights").items():
        assert torch.equal(tensor, model.state_dict()[name])


# --- resuming


class Stop(Exception):
    pass


def resumed(run, path, after=2):
    """A run that is stopped in an epoch, and what it comes to when it goes on."""

    def stop(number, _):
        if number == after + 1:
            raise Stop

    with pytest.raises(Stop):
        trainer.train(run, checkpoints=path, on_epoch=stop)
    return trainer.train(run, checkpoints=path, resume=True)


@pytest.mark.parametrize(
    "row",
    [
        SCHEDULE_FREE,
        {**SCHEDULE_FREE, "rho": 0.05},
        MUON,
        {**MUON, "rho": 0.05},
        SAMS["pytorch_optimizer"],
        LBFGS,
        {"optimizer": "./sam.py:Noisy", "lr": 0.05, "options": {"momentum": 0.9}},
    ],
    ids=lambda row: "-".join(map(str, row.values())),
)
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, row):
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", float("inf"))
    run = case(tmp_path, row, training={"epochs": 4, "batch_size": 64})
    whole = trainer.train(run)
    torch.manual_seed(5)  # what another process draws
    torch.randn(7)
    again = resumed(run, tmp_path / "case.pt")
    assert again.provenance["resumed_after"] == [2]
    assert same(again) == same(whole)


def test_an_optimizer_whose_state_does_not_come_back_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", float("inf"))
    trainer._warn_of_no_checkpoints.cache_clear()
    run = case(tmp_path, SAMS["half-steps"], training={"epochs": 4, "batch_size": 64})
    whole = trainer.train(run)
    with pytest.warns(RuntimeWarning, match=r"no checkpoints of \./sam\.py:SAM, .*starts anew"):
        again = resumed(run, tmp_path / "case.pt")
    assert not list(tmp_path.glob("case.pt*"))
    assert again.provenance["resumed_after"] == []
    assert same(again) == same(whole)


@pytest.mark.parametrize("row", [SGD, {**ADAMW, "rho": 0.05}])
def test_our_own_are_not_tried(tmp_path, monkeypatch, row):
    monkeypatch.setattr(stepping, "_Small", lambda *_: pytest.fail("tried"))
    assert built(tmp_path, row).why_not_resumable is None
