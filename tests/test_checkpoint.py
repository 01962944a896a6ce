"""A run that is killed, at any moment, goes on to the record of a run that was not."""

import hashlib
import io
import os
import signal

import pytest
import torch

from flatbench.protocols.cases import Case, grid
from flatbench.protocols.reading import load
from flatbench.training import checkpoint, step, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = """
[data]
name = "digits"
label_noise = 0.4
augmentation = "crop"
train_examples = 300

[training]
epochs = 5
batch_size = 128

[model]
width = 4
architectures = ["resnet18"]

[optimizers."adam+sam"]
base = "adam"
lr = 1e-3
rho = 0.05
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("protocol") / "tiny.toml"
    path.write_text(TINY)
    return grid(load(str(path)), seeds=[0])[0]


@pytest.fixture(scope="module")
def uninterrupted(case):
    return trainer.train(case)


@pytest.fixture(autouse=True)
def checkpoint_every_epoch(monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", float("inf"))


class Stop(Exception):
    pass


def train_until(case, path, epoch, **options):
    def stop(number, _):
        if number == epoch:
            raise Stop

    with pytest.raises(Stop):
        trainer.train(case, checkpoints=path, on_epoch=stop, **options)


def test_resumed_equals_uninterrupted(case, uninterrupted, tmp_path):
    path = tmp_path / "case.pt"
    train_until(case, path, 2)
    train_until(case, path, 4, resume=True)
    resumed = trainer.train(case, checkpoints=path, resume=True)
    assert resumed.without_timings() == uninterrupted.without_timings()
    # stopped in on_epoch, before the checkpoint of that epoch
    assert resumed.provenance["resumed_after"] == [1, 3]
    assert len(resumed.history) == case.epochs


def test_without_resume_a_checkpoint_is_not_used(case, tmp_path):
    path = tmp_path / "case.pt"
    train_until(case, path, 3)
    epochs = []
    trainer.train(case, checkpoints=path, on_epoch=lambda number, _: epochs.append(number))
    assert epochs == [1, 2, 3, 4, 5]


def test_the_checkpoint_of_another_case_is_not_used(case, tmp_path):
    path = tmp_path / "case.pt"
    train_until(case, path, 3)
    other = Case(case.protocol, case.architecture, case.optimizer, seed=1)
    assert trainer.train(other, checkpoints=path, resume=True).provenance["resumed_after"] == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_used(
    case, uninterrupted, tmp_path, damage
):
    path = tmp_path / "case.pt"
    train_until(case, path, 4)  # checkpoints of epochs 2 and 3 are there
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match=r"case\.pt: the checkpoint is damaged"):
        resumed = trainer.train(case, checkpoints=path, resume=True)
    assert resumed.provenance["resumed_after"] == [2]
    assert resumed.without_timings() == uninterrupted.without_timings()


def nonsense(kind, content):
    """Another file's content: its checksum is right, and what it holds is not a run's state."""
    if kind == "no archive":
        return b"nonsense"
    state = torch.load(io.BytesIO(content[32:]), weights_only=True)
    state = {
        "list": [state],
        "another table": {"of": "no run"},
        "no model": state | {"model": {}},
        "no optimizer": state | {"optimizer": 3},
        "another history": state | {"history": [{"epoch": 1}]},
        "no generator": state | {"shuffle": torch.zeros(3)},
        "no chance": {k: v for k, v in state.items() if k != "chance"},
    }[kind]
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        *("no archive", "list", "another table", "no model", "no optimizer"),
        *("another history", "no generator", "no chance"),
    ],
)
def test_a_whole_checkpoint_of_nonsense_is_reported_and_the_previous_used(
    case, uninterrupted, tmp_path, kind
):
    path = tmp_path / "case.pt"
    train_until(case, path, 4)
    body = nonsense(kind, path.read_bytes())
    path.write_bytes(hashlib.sha256(body).digest() + body)
    with pytest.warns(UserWarning, match=r"case\.pt: the checkpoint .*; not used$"):
        resumed = trainer.train(case, checkpoints=path, resume=True)
    assert resumed.provenance["resumed_after"] == [2]
    assert resumed.without_timings() == uninterrupted.without_timings()


def test_with_nonsense_alone_a_run_begins_as_if_there_were_none(case, uninterrupted, tmp_path):
    path = tmp_path / "case.pt"
    train_until(case, path, 3)
    body = nonsense("no chance", path.read_bytes())
    for file in (path, tmp_path / "case.pt.previous"):
        file.write_bytes(hashlib.sha256(body).digest() + body)
    with pytest.warns(UserWarning, match="does not fit: KeyError: 'chance'; not used"):
        begun = trainer.train(case, checkpoints=path, resume=True)
    assert begun.provenance["resumed_after"] == []
    assert begun.without_timings() == uninterrupted.without_timings()


def test_final_weights_are_those_of_the_record(case, tmp_path):
    from safetensors.torch import load_file

    from flatbench import data, models

    path = tmp_path / "weights.safetensors"
    record = trainer.train(case, weights=path)
    dataset = data.load(case.protocol.data)
    model = models.build(case.architecture, width=4, in_channels=1, classes=10)
    model.load_state_dict(load_file(path))
    loss, accuracy = step.evaluate(model, dataset, dataset.test)
    assert accuracy == record.test_accuracy
    assert loss == pytest.approx(record.test_loss, rel=1e-5)


def in_child(function):
    """Run a function in a forked child and return its pid; a fork needs no new import of torch."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return pid


STAGES = ["fsync", "chmod", "replace", "replace 2"]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_within_a_checkpoint_write(
    case,
    uninterrupted,
    tmp_path,
    stage,
):
    path = tmp_path / "case.pt"
    train_until(case, path, 3)
    name, _, count = stage.partition(" ")

    def die_within_the_write():
        real, calls = getattr(os, name), iter(range(int(count or 1)))
        last = int(count or 1) - 1

        def deadly(*arguments):
            if next(calls) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        setattr(os, name, deadly)
        trainer.train(case, checkpoints=path, resume=True)

    pid = in_child(die_within_the_write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    resumed = trainer.train(case, checkpoints=path, resume=True)
    assert resumed.provenance["resumed_after"]
    assert resumed.without_timings() == uninterrupted.without_timings()


@pytest.mark.parametrize("renaming", [0, 1])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_two_processes_may_save_one_checkpoint(tmp_path, monkeypatch, renaming, before):
    """The second saves a whole checkpoint just before a renaming of the first."""
    path, real, calls = tmp_path / "case.pt", os.replace, []
    for number in range(before):
        checkpoint.save(path, {"key": "k", "number": number})

    def replace(*arguments):
        calls.append(arguments)
        if len(calls) == renaming + 1:
            checkpoint.save(path, {"key": "k", "number": "second"})
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    checkpoint.save(path, {"key": "k", "number": "first"})
    assert len(calls) == 4
    assert next(checkpoint.states(path, "k"))[1]["number"] == "first"
    assert {file.name for file in tmp_path.iterdir()} <= {"case.pt", "case.pt.previous"}


def test_what_a_kill_left_half_written_is_removed_with_the_checkpoint(tmp_path):
    path, other = tmp_path / "a[1]-seed1.pt", tmp_path / "a[1]-seed10.pt"
    for file in (path, other):
        for number in range(2):
            checkpoint.save(file, {"key": "k", "number": number})

    def die_within_the_write():
        os.chmod = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.save(path, {"key": "k", "number": 2})

    os.waitpid(in_child(die_within_the_write), 0)
    assert len(list(tmp_path.iterdir())) == 5
    checkpoint.remove(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        other.name,
        f"{other.name}.previous",
    ]
