"""Any number of records of a realistic size, for what reads them: digits' own, under more seeds."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = Path(__file__).parents[1] / "results" / "digits" / "benchmark.json"
FORMS = ("benchmark.json", "folder", "json.gz")


def benchmarks(number: int) -> Iterator[dict[str, Any]]:
    """Yield entries of pytest-benchmark's JSON, one at a time: 100,000 of them fill a gigabyte.

    Each is a published run of digits with another seed, its accuracy and sharpness moved a little.
    """
    run = json.loads(DIGITS.read_text())["benchmarks"]
    random = np.random.default_rng(0)
    seeds = 1 + max(benchmark["extra_info"]["record"]["seed"] for benchmark in run)
    for i, benchmark in enumerate(itertools.islice(itertools.cycle(run), number)):
        entry = copy.deepcopy(benchmark)
        record = entry["extra_info"]["record"]
        record["seed"] += i // len(run) * seeds
        moved = record["test_accuracy"] + float(random.normal(0, 0.2))
        record["test_accuracy"] = min(max(moved, 0.0), 100.0)
        factors = np.exp(random.normal(0, 0.05, len(record["sharpness"]))).tolist()
        for (name, value), factor in zip(record["sharpness"].items(), factors, strict=True):
            record["sharpness"][name] = value * factor
        yield entry


def write(number: int, form: str, folder: Path) -> Path:
    """Write so many records in one of `FORMS`, and return the path for ``flatbench report``.

    ``benchmark.json`` is pytest-benchmark's own file, ``folder`` one file for each record, as a run
    writes them, and ``json.gz`` what is committed of many seeds.
    """
    path = folder / f"{number}.{form}"
    if form == "folder":
        path.mkdir()
        for entry in benchmarks(number):
            record = entry["extra_info"]["record"]
            name = f"{record['architecture']}-{record['optimizer']}-seed{record['seed']}.json"
            (path / name).write_text(json.dumps(record, indent=1))
        return path
    packed = form == "json.gz"
    with gzip.open(path, "wt") if packed else path.open("w") as file:
        file.write('{"benchmarks": [')
        for i, entry in enumerate(benchmarks(number)):
            kept = {"extra_info": entry["extra_info"]} if packed else entry
            file.write("," * (i > 0) + json.dumps(kept, indent=None if packed else 4))
        file.write("]}")
    return path
