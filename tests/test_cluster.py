"""What of a cluster's engine needs no cluster: its files, and what it asks of Ray."""

import os
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flatbench.errors import UsageError
from flatbench.execution import node
from flatbench.execution import ray as engine
from flatbench.execution.engine import Job
from flatbench.execution.run import Machine
from flatbench.protocols.cases import grid
from flatbench.training import checkpoint
from tests import faults, tiny

# --- files that a protocol refers to


def own(folder, reference, **changes):
    rows = {"mine": {"optimizer": reference, "lr": 0.1}}
    return grid(tiny.protocol(folder, tiny.table(optimizers=rows) | changes))


def test_the_files_travel_with_what_they_import(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.py").write_text("import helper\n" + faults.FAILS)
    (tmp_path / "deep" / "helper.py").write_text("ONE = 1\n")
    (tmp_path / "deep" / "other.py").write_text("not asked for")
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    data = {"name": "mine", "source": {"npz": "data.npz"}}
    found = engine._needed(own(tmp_path, "./deep/mine.py:Fails", data=data))
    assert set(found) == {tmp_path}
    files = found[tmp_path]
    assert set(files) == {"deep/mine.py", "deep/helper.py", "data.npz"}
    folder = node._unpacked(files)
    assert folder == node._unpacked(dict(files))  # once a process
    for name, content in files.items():
        assert (folder / name).read_bytes() == content
    other = node._unpacked({**files, "deep/helper.py": b"ONE = 2\n"})
    assert other != folder


def test_a_folder_of_images_travels_whole(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode())
    data = {"name": "mine", "source": {"folder": "images"}}
    (case, *_) = grid(tiny.protocol(tmp_path, tiny.table(data=data)))
    assert engine._needed([case]) == {
        tmp_path: {"images/a/1.png": b"a/1.png", "images/b/2.png": b"b/2.png"}
    }


def test_a_protocol_that_refers_to_no_file_sends_none(tmp_path):
    assert engine._needed(grid(tiny.protocol(tmp_path))) == {}
    assert engine._needed(own(tmp_path, "torch.optim:Rprop")) == {}


def test_a_file_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "fails.py").write_text(faults.FAILS)
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(UsageError) as caught:
        engine._needed(own(inner, "../fails.py:Fails"))
    assert str(caught.value) == (
        f"protocol 'tiny': with --engine ray a file must lie in the protocol's folder {inner}, "
        f"got {tmp_path / 'fails.py'}"
    )


# --- checkpoints


def save(path, epochs):
    checkpoint.save(path, {"key": "k", "epochs": epochs})


def test_each_attempt_has_a_checkpoint_of_its_own(tmp_path):
    job = Job(2, checkpoint=tmp_path / "case.pt", weights=tmp_path / "case.safetensors")
    shared = node._own_files(job, Path("/scratch"), is_shared=True)
    assert shared.checkpoint == tmp_path / "case.pt.attempt2"
    assert node._own_files(job, Path("/scratch"), is_shared=False).checkpoint == Path("/scratch/pt")
    # weights are sent in any case, so that an attempt that was given up cannot write them
    assert shared.weights == Path("/scratch/weights")
    assert node._own_files(Job(), Path("/scratch"), True) == Job()


def test_the_newest_whole_checkpoint_is_taken_over(tmp_path):
    kept = tmp_path / "case.pt"
    save(kept, 1)
    for number in (1, 2, 3):
        save(tmp_path / f"case.pt.attempt{number}", 10 * number)
        os.utime(tmp_path / f"case.pt.attempt{number}", (number, number))
    save(tmp_path / "case.pt.attempt2", 25)  # the one before it is kept beside it
    os.utime(tmp_path / "case.pt.attempt2", (2, 2))
    (tmp_path / "case.pt.attempt3").write_bytes(b"cut off")
    save(tmp_path / "another.pt.attempt4", 99)
    engine._take_over(kept)
    assert next(checkpoint.states(kept, "k"))[1]["epochs"] == 25
    assert {path.name for path in tmp_path.iterdir()} == {"case.pt", "another.pt.attempt4"}
    engine._take_over(kept)
    assert next(checkpoint.states(kept, "k"))[1]["epochs"] == 25


def test_a_checkpoint_is_sent_when_it_is_new_and_cheap(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(node.time, "monotonic", lambda: now[0])
    path = tmp_path / "pt"
    save(path, 1)
    sent = node._Sent(path)
    assert sent.due() is None  # as it was when the attempt began
    save(path, 2)
    assert sent.due() == path.read_bytes()
    sent.cost(2.0)  # seconds: at most a hundredth of the time
    save(path, 3)
    now[0] = 199
    assert sent.due() is None
    now[0] = 201
    assert sent.due() == path.read_bytes()
    assert sent.due() is None


# --- what is asked of Ray


class Remote:
    """A remote function that notes what it was asked for."""

    def __init__(self, asked=()):
        self.asked = dict(asked)
        self.given = []

    def options(self, **more):
        remote = Remote(self.asked | more)
        remote.given = self.given
        return remote

    def remote(self, *arguments):
        self.given.append((self.asked, arguments))
        return len(self.given)


class Cluster:
    """What stands for the module ray: two nodes, with a GPU of one kind each."""

    def __init__(self, **resources):
        self.total = resources

    def cluster_resources(self):
        return self.total

    def nodes(self):
        return [
            {"NodeID": "a", "Alive": True, "Resources": {"GPU": 1, "accelerator_type:H100": 1}},
            {"NodeID": "b", "Alive": False, "Resources": {"GPU": 1, "accelerator_type:L4": 1}},
        ]

    def put(self, content):
        return ("put", content)

    def shutdown(self):
        self.total = {}


@pytest.mark.parametrize(
    ("has", "asked", "found"),
    [
        ({"CPU": 4}, {}, ("cpu", 0)),
        ({"CPU": 4, "GPU": 2}, {}, ("cuda", 1)),
        ({"CPU": 4, "GPU": 2}, {"device": "cpu"}, ("cpu", 0)),
        ({"CPU": 4, "GPU": 2}, {"workers_per_gpu": 4}, ("cuda", 0.25)),
        ({"CPU": 4}, {"device": "cuda", "address": "auto"}, ("cuda", 1)),  # it may grow
    ],
)
def test_what_a_task_asks_of_a_node(has, asked, found):
    device, resources = engine._resources(Cluster(**has), Machine(engine="ray", **asked))
    assert (device, resources) == (found[0], {"num_cpus": 1, "num_gpus": found[1]})


@pytest.fixture
def cluster():
    """An engine on a cluster that trains nothing."""
    made = object.__new__(engine.Ray)
    made._ray = Cluster(**{"GPU": 1, "accelerator_type:H100": 1})
    made._device, made._resources = "cuda", {"num_cpus": 1, "num_gpus": 1}
    made._remote, made._files, made._running = Remote(), {}, {}
    made._kinds, made._marks, made._fault = {}, {}, None
    return made


def begun(cluster, case, job):
    """Begin an attempt, and return what it asks for and the checkpoint that it is given."""
    cluster._begin(engine._Attempt(case, job, lambda *_: None, Future()))
    asked, (*_, kept) = cluster._remote.given[-1]
    return asked, kept


def test_another_attempt_asks_for_the_gpu_of_the_first(cluster, tmp_path):
    (case, *_) = grid(tiny.protocol(tmp_path))
    job = Job(checkpoint=tmp_path / "case.pt")
    assert begun(cluster, case, job) == ({}, None)
    stream = next(iter(cluster._running))
    cluster._take(stream, cluster._running[stream], "begun", "a")
    again = replace(job, number=2, resume=True)
    assert begun(cluster, case, again) == ({}, None)  # there is no checkpoint yet
    save(job.checkpoint, 3)
    kept = ("put", job.checkpoint.read_bytes())
    assert begun(cluster, case, again) == ({"accelerator_type": "H100"}, kept)
    cluster._ray = Cluster(GPU=1, **{"accelerator_type:L4": 1})  # no such GPU is left
    assert begun(cluster, case, again) == ({}, kept)
    assert begun(cluster, case, job) == ({}, None)  # not to be resumed


def test_what_an_attempt_that_was_given_up_sends_reaches_nobody(cluster, tmp_path):
    (case, *_) = grid(tiny.protocol(tmp_path))
    job = Job(checkpoint=tmp_path / "case.pt")
    begun(cluster, case, job)
    cluster._end(1, engine.WorkerDied("its node is gone"))
    begun(cluster, case, replace(job, number=2, resume=True))
    assert list(cluster._running) == [2]  # the streams that are read


def test_a_node_that_is_gone(cluster):
    assert cluster._is_alive("a")
    assert not cluster._is_alive("b")
    assert not cluster._is_alive("never seen")
    assert cluster._is_alive("")  # it had not begun
    assert (cluster._gpu_of("a"), cluster._gpu_of("c")) == ("H100", None)


def test_a_fault_of_the_engine_reaches_whoever_waits(cluster, tmp_path):
    """The watching thread must not end in silence."""
    (case, *_) = grid(tiny.protocol(tmp_path))
    cluster._limit, cluster._waiting = None, engine.queue.SimpleQueue()
    cluster._closing = SimpleNamespace(is_set=lambda: False, wait=lambda seconds: None)
    cluster._ray.wait = lambda *_, **__: 1 / 0
    futures = [cluster.submit(case, Job(), lambda *_: None) for _ in range(2)]
    with pytest.raises(ZeroDivisionError):
        cluster._watch()
    futures.append(cluster.submit(case, Job(), lambda *_: None))  # and so does every later one
    for future in futures:
        with pytest.raises(ZeroDivisionError):
            future.result(timeout=0)


def test_the_probe_says_what_the_local_engine_says():
    from flatbench.execution.local import Local
    from flatbench.records import provenance

    local = Local(["cpu"])
    try:
        assert local.machines() == (node.machine("cpu"),)
        assert node.machine("cpu") == provenance.machine(torch.device("cpu"))
    finally:
        local.close()
