"""What an engine costs, beside a bare loop over the cases in as many processes.

``pytest benchmarks/bench_execution.py``: the cases of one seed of the default grid (aim: at most
5 % more than the loop), and 1,000 short cases (aim: Ray at most twice the local pool's time, and a
driver whose memory stays as it was). Both count the whole run, from the start of the first process
to the end of the last one. And what a short case costs the process that hands it to an
engine, of the processor's time.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flatbench import execution
from flatbench.execution import Machine
from flatbench.files import write_json
from flatbench.protocols.cases import Case, grid
from flatbench.protocols.reading import load
from flatbench.records.store import Store

PROCESSES = execution.cores()
SHORT_CASES = 1000
SHORT = """
seeds = [0]
[data]
name = "digits"
train_examples = 320
[training]
epochs = 2
batch_size = 32
[model]
width = 1
architectures = [{ name = "linear", build = "./linear.py:Linear" }]
[optimizers.sgd]
base = "sgd"
lr = 0.1
[optimizers.adam]
base = "adam"
lr = 0.01
"""
LINEAR = """
from torch import nn

def Linear(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def loop(cases: Sequence[Case], results: Path) -> None:
    """Train cases one after the other, as somebody would without an engine."""
    from flatbench.execution import work
    from flatbench.training import trainer

    work.set_up("cpu")
    store = Store(results)
    for case in cases:
        record = trainer.train(case, checkpoints=store.checkpoint(case))
        write_json(store.record(case), record.to_json())


def bare(cases: Sequence[Case], results: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    started = [
        spawn.Process(target=loop, args=(cases[i::PROCESSES], results)) for i in range(PROCESSES)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0


def memory() -> float:
    """Return this process's resident memory in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@dataclass
class Seen:
    """What an engine costs the process that it is called from, once a tenth of the cases is done.

    By the engine's name: MiB that its memory grew, and milliseconds of the processor a case.
    """

    grown: dict[str, float] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)


def by_engine(name: str, seen: Seen) -> Callable[[Sequence[Case], Path], None]:
    """Return what trains cases by an engine, and notes what that costs here."""

    def train(cases: Sequence[Case], results: Path) -> None:
        machine = Machine("cpu", workers=PROCESSES, engine="ray" if name == "ray" else "local")
        with execution.start(cases, machine, Store(results)) as run:
            for number, case in enumerate(cases):
                assert run.futures[case.id].result().status == "completed"
                if number == len(cases) // 10:
                    before, begun = memory(), time.process_time()
            seen.grown[name] = memory() - before
            rest = len(cases) - 1 - len(cases) // 10
            seen.milliseconds[name] = 1000 * (time.process_time() - begun) / rest

    return train


def ways(seen: Seen) -> dict[str, Callable[[Sequence[Case], Path], None]]:
    pytest.importorskip("ray")
    return {"bare": bare, "local": by_engine("local", seen), "ray": by_engine("ray", seen)}


def measured(benchmark: Any, cases: Sequence[Case], folder: Path, rounds: int) -> None:
    """Time each way in turn, and keep the medians' ratios.

    pytest-benchmark's own figure is the time of them all.
    """
    seen = Seen()
    seconds: dict[str, list[float]] = {}

    def in_turn() -> None:
        for name, train in ways(seen).items():
            times = seconds.setdefault(name, [])
            start = time.perf_counter()
            train(cases, folder / f"{name}{len(times)}")
            times.append(time.perf_counter() - start)

    benchmark.pedantic(in_turn, rounds=rounds)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    benchmark.extra_info |= {
        "cases": len(cases),
        "processes": PROCESSES,
        "bare_seconds": median["bare"],
        "local_over_bare": median["local"] / median["bare"],
        "ray_over_bare": median["ray"] / median["bare"],
        "ray_over_local": median["ray"] / median["local"],
        "local_driver_grew_mib": seen.grown["local"],
        "ray_driver_grew_mib": seen.grown["ray"],
    }


@pytest.mark.benchmark(group="execution")
def test_default_grid(benchmark: Any, tmp_path: Path) -> None:
    measured(benchmark, grid(load("digits"), seeds=[0]), tmp_path, rounds=2)


def short_cases(folder: Path, number: int) -> list[Case]:
    (folder / "short.toml").write_text(SHORT)
    (folder / "linear.py").write_text(LINEAR)
    return grid(load(str(folder / "short.toml")), seeds=range(number // 2))


@pytest.mark.benchmark(group="execution")
def test_many_short_cases(benchmark: Any, tmp_path: Path) -> None:
    cases = short_cases(tmp_path, SHORT_CASES)
    measured(benchmark, cases, tmp_path, rounds=1)  # each of the 1,000 is a repetition


@pytest.mark.benchmark(group="driver")
@pytest.mark.parametrize("name", ["local", "ray"])
def test_driver(benchmark: Any, tmp_path: Path, name: str) -> None:
    if name == "ray":
        pytest.importorskip("ray")
    cases, seen = short_cases(tmp_path, 400), Seen()
    benchmark.pedantic(by_engine(name, seen), (cases, tmp_path / "results"), rounds=1)
    benchmark.extra_info["milliseconds_a_case"] = seen.milliseconds[name]
