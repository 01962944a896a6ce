"""When steps are captured and replayed; here by a stand-in, in the ``gpu`` tests for real."""

import copy
import time
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from flatbench import data, execution
from flatbench.protocols.cases import grid
from flatbench.protocols.reading import load
from flatbench.training import graph, setup, step, trainer
from flatbench.training.devices import make_deterministic
from flatbench.training.run import _on_cpu, snapshot
from flatbench.training.step import batch_loss
from tests.test_checkpoint import TINY

SIZE = 4


class Recorder:
    """A step that remembers its batches, and a capture that remembers its calls."""

    def __init__(self):
        self.stepped = []
        self.replayed = []
        self.undone = 0

    def step(self, batch):
        self.stepped.append(batch.tolist())
        return batch.sum()

    def capture(self, step, batch, generators, stream):
        def replay():
            self.replayed.append(batch.tolist())
            return batch.sum()

        return replay

    def snapshot(self):
        def undo():
            self.undone += 1

        return undo

    def graphed(self, capture=None, where="cpu", **options):
        return graph.graphed(
            self.step,
            SIZE,
            torch.device(where),
            snapshot=self.snapshot,
            capture=capture or self.capture,
            **options,
        )


def batches(count):
    return list(torch.arange(count * SIZE).split(SIZE))


def take(step, count):
    for batch in batches(count):
        step(batch)


def test_the_first_steps_are_taken_as_they_are_and_the_others_replayed():
    recorder = Recorder()
    step = recorder.graphed()
    results = [step(batch).item() for batch in batches(6)]
    assert recorder.stepped == [b.tolist() for b in batches(6)[: graph.WARM_UP_STEPS]]
    assert recorder.replayed == [b.tolist() for b in batches(6)[graph.WARM_UP_STEPS :]]
    assert results == [b.sum().item() for b in batches(6)]
    assert recorder.undone == 0


def test_a_smaller_batch_is_never_replayed():
    recorder = Recorder()
    step = recorder.graphed()
    for batch in batches(5):
        step(batch)
    step(torch.tensor([1, 2]))
    step(batches(1)[0])
    assert recorder.stepped[-1] == [1, 2]
    assert recorder.replayed[-1] == [0, 1, 2, 3]


def test_a_failed_capture_warns_once_and_undoes_its_half_step():
    recorder = Recorder()

    def fail(step, batch, generators, stream):
        step(batch)
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    def run():
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


def test_what_follows_a_capture_comes_once_and_before_the_first_replay():
    told = []

    def capture(step, batch, generators, stream):
        told.append("capture")

        def replay():
            told.append("replay")
            return batch.sum()

        return replay

    step = Recorder().graphed(capture, after_capture=lambda: told.append("after capture"))
    take(step, graph.WARM_UP_STEPS + 2)
    assert told == ["capture", "after capture", "replay", "replay"]


def test_nothing_follows_a_capture_that_failed():
    told = []

    def fail(step, batch, generators, stream):
        raise RuntimeError("no")

    step = Recorder().graphed(fail, after_capture=lambda: told.append("after capture"))
    with pytest.warns(RuntimeWarning, match="no CUDA graph"):
        take(step, graph.WARM_UP_STEPS + 2)
    assert told == []


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.filterwarnings("ignore:no CUDA graph")
def test_the_time_of_a_capture_is_told_once(fails):
    def slow(step, batch, generators, stream):
        time.sleep(0.05)
        if fails:
            raise RuntimeError("no")
        return batch.sum

    seconds = []
    step = Recorder().graphed(slow, on_time=seconds.append)
    take(step, graph.WARM_UP_STEPS + 3)
    assert len(seconds) == 1
    assert 0.05 <= seconds[0] < 5


@pytest.mark.filterwarnings("ignore:no CUDA graph")
def test_the_warning_gives_the_reason_of_the_first_error():
    """The end of a broken capture raises too, and says less."""

    def fail(step, batch, generators, stream):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    step = Recorder().graphed(fail)
    with pytest.warns(RuntimeWarning, match="operation not permitted when stream is capturing"):
        take(step, graph.WARM_UP_STEPS + 1)


# --- what is asked of CUDA, by fakes

GPU = torch.device("cuda:1")


class Stream:
    def __init__(self, device):
        self.device = device
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)


class Generator:
    """A random generator whose state is an object, in capture mode or not."""

    def __init__(self, device=GPU, value=0):
        self.device = device
        self.state = {"value": torch.tensor(value), "capturing": False}

    def get_state(self):
        return self.state["value"].clone()

    def set_state(self, value):
        assert not self.state["capturing"], "set_state does not end a capture"
        self.state["value"] = value

    def graphsafe_set_state(self, other):
        self.state = other.state


class Cuda:
    """The part of torch.cuda that a capture needs, with torch 2.11's ways of failing."""

    def __init__(self, end_fails=False):
        self.end_fails = end_fails
        self.current = self.first = Stream(GPU)
        self.made = []
        self.used = []
        self.synchronised = []
        self.default = Generator(value=5)
        self.registered = []
        self.pools = set()
        self.ended = []

    def install(self, patch):
        cuda = self

        class Graph:
            def register_generator_state(self, generator):
                warnings.warn("deprecated", FutureWarning, 2)
                cuda.registered.append(generator)

            def replay(self):
                cuda.ended.append("replay")

            def reset(self):
                cuda.ended.append("reset")

        @contextmanager
        def capture(_, pool, stream):
            cuda.current = stream
            cuda.used.append(stream)
            cuda.pools.add(pool)
            generators = [cuda.default, *cuda.registered]
            for generator in generators:
                generator.state["capturing"] = True
            try:
                yield
            finally:
                if cuda.end_fails:
                    raise RuntimeError("operation failed due to a previous error during capture")
                for generator in generators:
                    generator.state["capturing"] = False
                cuda.pools.remove(pool)
                cuda.current = cuda.first

        @contextmanager
        def on(stream):
            cuda.used.append(stream)
            before, cuda.current = cuda.current, stream
            yield
            cuda.current = before

        def stream_on(device):
            cuda.made.append(Stream(device))
            return cuda.made[-1]

        def current_stream(device):
            assert device == GPU
            return cuda.current

        def end_allocation(index, pool):
            assert index == GPU.index
            if pool not in cuda.pools:
                raise RuntimeError("not currently recording to this pool")
            cuda.pools.remove(pool)

        fakes = {
            "CUDAGraph": Graph,
            "graph": capture,
            "graph_pool_handle": lambda: "pool",
            "Stream": stream_on,
            "stream": on,
            "current_stream": current_stream,
            "set_stream": lambda stream: setattr(cuda, "current", stream),
            "synchronize": cuda.synchronised.append,
            "default_generators": (None, cuda.default),
        }
        for name, fake in fakes.items():
            patch.setattr(torch.cuda, name, fake)
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocation, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", lambda *_: None, raising=False)


class Batch:
    """Indices that say they are on the GPU."""

    device = GPU


def test_warm_up_and_capture_share_one_stream_of_the_device_of_the_run(
    monkeypatch,
):
    cuda, seen = Cuda(), []
    cuda.install(monkeypatch)
    recorder = Recorder()

    def capture(step, batch, generators, stream):
        seen.append(stream)
        return recorder.capture(step, batch, generators, stream)

    step = recorder.graphed(capture, where=GPU)
    take(step, graph.WARM_UP_STEPS + 2)
    (side,) = cuda.made
    assert side.device == GPU
    assert cuda.used == [side] * graph.WARM_UP_STEPS
    assert seen == [side]
    assert set(cuda.synchronised) == {GPU}
    # each of the two waits for the other's part
    assert side.waited_for == [cuda.first] * graph.WARM_UP_STEPS
    assert cuda.first.waited_for == [side] * graph.WARM_UP_STEPS


def test_a_capture_is_on_the_stream_that_it_is_given(monkeypatch):
    cuda, side = Cuda(), Stream(GPU)
    cuda.install(monkeypatch)
    replay = graph.capture_cuda_graph(lambda batch: "sums", Batch(), [], side)
    assert replay() == "sums"
    assert cuda.used == [side]
    assert cuda.ended == ["replay"]
    assert cuda.current is cuda.first


@pytest.mark.parametrize("end_fails", [False, True])
def test_a_failed_capture_leaves_stream_allocator_and_generators_as_they_were(
    monkeypatch, end_fails
):
    cuda, crops = Cuda(end_fails), Generator(value=3)
    cuda.install(monkeypatch)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0"))

    def step(batch):
        crops.state["value"] += 1  # half a step has drawn
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError):
        graph.capture_cuda_graph(step, Batch(), [crops], Stream(GPU))
    assert cuda.current is cuda.first
    assert cuda.pools == set()
    for generator, value in ((crops, 3), (cuda.default, 5)):
        assert not generator.state["capturing"]
        assert generator.get_state() == value


@pytest.mark.parametrize(("version", "times"), [("2.9.0", 1), ("2.13.0", 1), ("2.14.1+cu130", 0)])
def test_generators_are_registered_where_torch_needs_it_and_nobody_is_warned(
    monkeypatch, recwarn, version, times
):
    cuda, crops = Cuda(), Generator()
    cuda.install(monkeypatch)
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    graph.capture_cuda_graph(lambda batch: None, Batch(), [crops], Stream(GPU))
    assert cuda.registered == [crops] * times
    assert not recwarn.list


# --- a whole run


@pytest.mark.parametrize("row", ["adam+sam", "sgd"])
def test_a_run_goes_on_as_if_a_failed_capture_had_not_been(tmp_path, monkeypatch, row):
    """The failure comes in the middle of a SAM step, after the weights are perturbed."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY + '\n[optimizers.sgd]\nbase = "sgd"\nlr = 0.1\nmomentum = 0.9\n')
    (case,) = grid(load(str(path)), optimizers=[row], seeds=[0])
    plain = trainer.train(case)

    def fail_half_way(step, batch, generators, stream):
        run = step.args[0]
        loss, _ = batch_loss(run, run.dataset.normalise(run.images[batch]), run.labels[batch])
        loss.backward()
        if row == "adam+sam":
            run.optimizer.first_step()
        raise RuntimeError("cannot be captured")

    prepare = setup.prepare

    def prepare_graphed(*arguments, **options):
        run = prepare(*arguments, **options)
        run.step = setup.graphed_step(run, fail_half_way)
        return run

    monkeypatch.setattr(trainer, "prepare", prepare_graphed)
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        fallen_back = trainer.train(case)
    # the half step ran its forward pass in training mode, which moves BatchNorm: undone too
    assert fallen_back.without_timings() == plain.without_timings()


def test_a_snapshot_is_kept_on_the_cpu_and_puts_everything_back(tmp_path):
    kept = _on_cpu({"a": [torch.ones(2, 3).t(), 1], "b": (0.9, None)})
    assert kept["a"][1] == 1
    assert kept["b"] == (0.9, None)
    assert kept["a"][0].stride() == (1, 3)  # channels_last stays so

    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    (case,) = grid(load(str(path)), seeds=[0])
    run = setup.prepare(case, data.load(case.protocol.data))
    (group,) = run.optimizer.param_groups
    group["lr"] = torch.tensor(0.5)  # as on CUDA
    run.step(torch.arange(32))
    before = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    moved = []
    with pytest.MonkeyPatch.context() as patch:
        to = Tensor.to

        def watch(self, *arguments, **options):
            if arguments == ("cpu",):
                moved.append(self)
            return to(self, *arguments, **options)

        patch.setattr(Tensor, "to", watch)
        put_back = snapshot(run)
    # every tensor of the model and of Adam's state, and the learning rate
    assert len(moved) == len(before[0]) + 3 * len(before[1]["state"]) + 1
    run.step(torch.arange(32))
    put_back()
    after = run.model.state_dict(), run.optimizer.state_dict()
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("row", ["sgd", "sgd+sam", "adam", "adam+sam"])
@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_replayed_run_equals_stepped_run(monkeypatch, tmp_path, row, augmentation):
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
def test_a_run_on_the_gpu_falls_back_on_nothing(tmp_path, recwarn):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    (case,) = grid(load(str(path)), seeds=[0])
    assert trainer.train(case, device_name="cuda").status == "completed"
    assert not [w for w in recwarn if "no CUDA graph" in str(w.message)]


@pytest.mark.gpu
def test_a_capture_that_breaks_falls_back_to_the_run_without_a_graph(tmp_path, monkeypatch):
    """Only CUDA can break a capture: a wait for the device within it is not permitted."""
    make_deterministic(torch.device("cuda"))
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    (case,) = grid(load(str(path)), seeds=[0])
    with monkeypatch.context() as patch:
        patch.setattr(graph, "WARM_UP_STEPS", 10**9)
        plain = trainer.train(case, device_name="cuda")
    real = step.take_step

    def waits_within_a_capture(run, batch):
        sums = real(run, batch)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return sums

    monkeypatch.setattr(setup, "take_step", waits_within_a_capture)
    with pytest.warns(RuntimeWarning, match="no CUDA graph") as caught:
        fallen_back = trainer.train(case, device_name="cuda")
    assert len([w for w in caught if "no CUDA graph" in str(w.message)]) == 1
    assert fallen_back.status == "completed"
    assert fallen_back.without_timings() == plain.without_timings()
    torch.cuda.empty_cache()  # which the allocator refuses while it takes a capture to be underway


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["cuda", "cuda:1"])
def test_a_case_through_the_engine(tmp_path, place):
    """Only a worker process on a GPU makes CUDA's first call in the order that users meet."""
    if place == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    (case,) = grid(load(str(path)), seeds=[0])
    with execution.start([case], execution.Machine(place, workers=1)) as run:
        record = run.futures[case.id].result()
    assert (record.status, record.reason) == ("completed", None)
    assert record.provenance["device_kind"] == "cuda"
