"""The folder that keeps records, checkpoints and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flatbench.protocols.cases import Case
from flatbench.records.reading import read_one
from flatbench.records.record import Record


@dataclass(frozen=True)
class Store:
    """The folder that takes records, checkpoints and weights, one file of each for each case."""

    results: Path
    resume: bool = False  # take a record that is there already instead of training again
    keep_weights: bool = False

    def record(self, case: Case) -> Path:
        """Return where a case's record is kept."""
        return self._path(case, "records", "json")

    def weights(self, case: Case) -> Path:
        """Return where a case's final weights are kept, beside its record."""
        return self._path(case, "records", "safetensors")

    def checkpoint(self, case: Case) -> Path:
        """Return where a case under way keeps its checkpoint."""
        return self._path(case, "checkpoints", "pt")

    def _path(self, case: Case, folder: str, suffix: str) -> Path:
        name = f"{case.architecture}-{case.optimizer}-seed{case.seed}.{suffix}"
        return self.results / case.protocol.name / folder / name

    def finished(self, case: Case, key: str) -> Record | None:
        """Return the record of an earlier run that this one would repeat bit for bit, or None.

        A failed case is tried again; a diverged one would diverge again.
        """
        path = self.record(case)
        missing_weights = self.keep_weights and not self.weights(case).exists()
        if not self.resume or missing_weights or not path.exists():
            return None
        record = read_one(path)
        same = record.provenance.get("key") == key and record.status != "failed"
        return record if same else None
