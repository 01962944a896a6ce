"""Read what a finished case left: its network with the final weights, and its examples."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flatbench import components, data
from flatbench.errors import UsageError
from flatbench.protocols.cases import Case
from flatbench.records.reading import read_one
from flatbench.records.record import Record
from flatbench.records.store import Store, key_of_weights
from flatbench.sharpness import LossSurface, loss_surface
from flatbench.training import identity, measuring, setup, task


@dataclass(frozen=True)
class Solution:
    """A trained network, with the loss around it.

    Attributes:
        case: what was trained.
        surface: the plain cross-entropy on the training examples that the case's sharpness is
            measured on. Its inputs [n, C, H, W] are normalised and not augmented; its targets [n]
            are those trained on, with the case's label noise.
    """

    case: Case
    surface: LossSurface


def solution(case: Case, store: Store, where: torch.device, data_dir: Path | None) -> Solution:
    """Read a case's final weights from the store, and the examples that it was measured on.

    Weights without a run's key, which the first versions wrote, are taken with a warning: nothing
    says whether they are the record's.

    Raises:
        UsageError: there are no weights or no completed record, the weights are of another run than
            the record, the protocol or the network's code has changed since the training, a file is
            damaged, or the data set is not there.
    """
    weights, path = store.weights(case), store.record(case)
    for file in (path, weights):
        if not file.exists():
            raise UsageError(
                f"{file}: not there; train the case with: flatbench run --keep-weights "
                f"--protocol {case.protocol.name} --architectures {case.architecture} "
                f"--optimizers {case.optimizer} --seeds {case.seed}"
            )
    record = read_one(path)
    if record.status != "completed":
        raise UsageError(f'{path}: status must be "completed", got {json.dumps(record.status)}')
    if record.provenance.get("cell_hash") != case.cell_hash():
        raise UsageError(
            f'{path}: provenance.cell_hash must be "{case.cell_hash()}", '
            f"got {json.dumps(record.provenance.get('cell_hash'))}: "
            "the protocol has changed since; train the case again"
        )
    _check_code(case, record, path)
    dataset = data.load_for(case.protocol, where, data_dir)
    model = setup.build_model(case, dataset)
    try:
        model.load_state_dict(load_file(weights, str(where)))
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: names or shapes do not fit
        line = " ".join(str(error).split())
        raise UsageError(f"{weights}: are not the weights of {case.id}: {line}") from None
    _check_run(weights, record)
    picked = measuring.examples(dataset, case.protocol.sharpness)
    images = dataset.normalise(dataset.train.images[picked])
    labels = setup.training_labels(case, dataset)[picked]
    return Solution(case, loss_surface(model.eval(), task.of(case).loss, images, labels))


def _check_run(weights: Path, record: Record) -> None:
    """Raise if weights are not of the run that the record is of: both may have been replaced."""
    wanted, found = record.provenance.get("key"), key_of_weights(weights)
    if found is None:
        warnings.warn(
            f"{weights}: has no run's key, so that it may be of another run than the record",
            RuntimeWarning,
            stacklevel=2,
        )
    elif found != wanted:
        raise UsageError(
            f"{weights}: key must be {json.dumps(wanted)}, the record's, got {json.dumps(found)}: "
            "the weights are of another run; train the case again with --keep-weights"
        )


def _check_code(case: Case, record: Record, path: Path) -> None:
    """Raise if the code that builds the network has changed since the training.

    Its weights might still fit, and the landscape would be that of another function.
    """
    network = case.architecture_settings
    now = identity.sources(case)
    then = record.provenance.get("components")
    then = then if isinstance(then, dict) else {}
    for reference in (network.build, *components.references(network.options)):
        if reference in now and then.get(reference) != now[reference]:
            raise UsageError(
                f"{path}: provenance.components.{reference} must be {json.dumps(now[reference])}, "
                f"got {json.dumps(then.get(reference))}: "
                "the network's code has changed since; train the case again"
            )
