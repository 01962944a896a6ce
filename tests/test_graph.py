"""When steps are captured and replayed; here by a stand-in, in the ``gpu`` tests for real."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flatbench import graph, trainer
from flatbench.cases import grid
from flatbench.device import make_deterministic
from flatbench.protocol import load
from tests.test_checkpoint import TINY

SIZE = 4


class Recorder:
    """A step that remembers its batches, and a capture that remembers its calls."""

    def __init__(self) -> None:
        self.stepped: list[list[int]] = []
        self.replayed: list[list[int]] = []
        self.undone = 0

    def step(self, batch: Tensor) -> Tensor:
        self.stepped.append(batch.tolist())
        return batch.sum()

    def capture(self, step, batch: Tensor, generators):
        def replay() -> Tensor:
            self.replayed.append(batch.tolist())
            return batch.sum()

        return replay

    def snapshot(self):
        def undo() -> None:
            self.undone += 1

        return undo

    def graphed(self, capture=None):
        return graph.graphed(
            self.step,
            SIZE,
            torch.device("cpu"),
            snapshot=self.snapshot,
            capture=capture or self.capture,
        )


def batches(count: int) -> list[Tensor]:
    return list(torch.arange(count * SIZE).split(SIZE))


def test_the_first_steps_are_taken_as_they_are_and_the_others_replayed() -> None:
    recorder = Recorder()
    step = recorder.graphed()
    results = [step(batch).item() for batch in batches(6)]
    assert recorder.stepped == [b.tolist() for b in batches(6)[: graph.WARM_UP_STEPS]]
    assert recorder.replayed == [b.tolist() for b in batches(6)[graph.WARM_UP_STEPS :]]
    assert results == [b.sum().item() for b in batches(6)]
    assert recorder.undone == 0


def test_a_smaller_batch_is_never_replayed() -> None:
    recorder = Recorder()
    step = recorder.graphed()
    for batch in batches(5):
        step(batch)
    step(torch.tensor([1, 2]))
    step(batches(1)[0])
    assert recorder.stepped[-1] == [1, 2]
    assert recorder.replayed[-1] == [0, 1, 2, 3]


def test_a_failed_capture_warns_once_and_undoes_its_half_step() -> None:
    recorder = Recorder()

    def fail(step, batch, generators):
        step(batch)
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    def run() -> None:
        step = recorder.graphed(fail)
        for batch in batches(7):
            step(batch)

    with pytest.warns(RuntimeWarning, match="operation not permitted") as caught:
        run()
    assert len(caught) == 1
    assert "more lines" not in str(caught[0].message)
    assert recorder.undone == 1
    assert recorder.replayed == []
    # the capture's own half step, of the batch that is then stepped for real
    assert recorder.stepped[graph.WARM_UP_STEPS] == recorder.stepped[graph.WARM_UP_STEPS + 1]


@pytest.mark.parametrize("row", ["adam+sam", "sgd"])
def test_a_run_goes_on_as_if_a_failed_capture_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """The failure comes in the middle of a SAM step, after the weights are perturbed."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY + '\n[optimizers.sgd]\nbase = "sgd"\nlr = 0.1\nmomentum = 0.9\n')
    (case,) = grid(load(str(path)), optimizers=[row], seeds=[0])
    plain = trainer.train(case)

    def fail_half_way(step, batch: Tensor, generators):
        run = step.args[0]
        loss, _ = trainer._loss(run, run.dataset.normalise(run.images[batch]), run.labels[batch])
        loss.backward()
        if row == "adam+sam":
            run.optimizer.first_step()
        raise RuntimeError("cannot be captured")

    prepare = trainer.prepare

    def prepare_graphed(*arguments, **options):
        run = prepare(*arguments, **options)
        run.step = graph.graphed(
            run.step,
            case.protocol.training.batch_size,
            torch.device("cpu"),
            snapshot=lambda: trainer._snapshot(run),
            capture=fail_half_way,
        )
        return run

    monkeypatch.setattr(trainer, "prepare", prepare_graphed)
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        fallen_back = trainer.train(case)
    # the half step ran its forward pass in training mode, which moves BatchNorm: undone too
    assert fallen_back.without_timings() == plain.without_timings()


@pytest.mark.gpu
@pytest.mark.parametrize("row", ["sgd", "sgd+sam", "adam", "adam+sam"])
@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_replayed_run_equals_stepped_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: str, augmentation: str
) -> None:
    make_deterministic(torch.device("cuda"))
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
[data]
name = "digits"
augmentation = "{augmentation}"
[training]
epochs = 3
batch_size = 64
[model]
width = 8
[optimizers.sgd]
base = "sgd"
lr = 0.1
momentum = 0.9
[optimizers."sgd+sam"]
base = "sgd"
lr = 0.1
momentum = 0.9
rho = 0.05
[optimizers.adam]
base = "adam"
lr = 1e-3
[optimizers."adam+sam"]
base = "adam"
lr = 1e-3
rho = 0.05
"""
    )
    for case in grid(load(str(path)), optimizers=[row], seeds=[0]):
        replayed = trainer.train(case, device_name="cuda")
        with monkeypatch.context() as patch:
            patch.setattr(graph, "WARM_UP_STEPS", 10**9)
            stepped = trainer.train(case, device_name="cuda")
        assert replayed.status == "completed"
        assert replayed.without_timings() == stepped.without_timings()


@pytest.mark.gpu
def test_a_run_on_the_gpu_falls_back_on_nothing(tmp_path: Path, recwarn) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    (case,) = grid(load(str(path)), seeds=[0])
    assert trainer.train(case, device_name="cuda").status == "completed"
    assert not [w for w in recwarn if "no CUDA graph" in str(w.message)]
