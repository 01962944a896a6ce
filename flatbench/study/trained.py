"""`flatbench sharpness`: every measure, with its error, of a network that is already trained."""

from __future__ import annotations

import hashlib
import pickle
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from flatbench import __version__, data
from flatbench.errors import UsageError
from flatbench.models import ARCHITECTURES
from flatbench.protocols.cases import Case, grid
from flatbench.protocols.protocol import Protocol
from flatbench.protocols.reading import from_table
from flatbench.records.provenance import processor
from flatbench.records.quantities import STANDARD_ERROR
from flatbench.study.runs import Machine
from flatbench.training import devices, measuring, setup, task
from flatbench.training.step import evaluate

SOURCE = "sharpness"
# What can be measured with nothing in it but this: a constant network that is right by chance.
CHANCE = 1.5


@dataclass(frozen=True)
class Value:
    """One measure of a network; without a value, why it could not be taken."""

    name: str
    value: float | None
    standard_error: float | None  # None where there is no average
    seconds: float
    failure: str | None = None


@dataclass(frozen=True)
class Measured:
    """All measures, and what they are of.

    Attributes:
        values: in the order asked for.
        loss: the mean over the examples measured on.
        outcome: accuracy in percent, or what the task's own metric gives, on these examples.
        outcome_name: what that is.
        warning: why the weights may not fit the data, or None.
        about: settings, versions and digests.
    """

    values: tuple[Value, ...]
    loss: float
    outcome: float
    outcome_name: str
    warning: str | None
    about: Mapping[str, Any]


def protocol_of(
    model: str,
    model_options: Mapping[str, Any],
    data_source: str,
    width: int,
    settings: Mapping[str, Any],
    loss: str | None,
) -> Protocol:
    """Return a protocol of a network and its data alone, as a file of it would be read.

    Args:
        model: a network of ours, or a reference.
        model_options: what it is built with.
        data_source: the path of an .npz, or a data set of ours.
        width: of a network of ours.
        settings: the ``[sharpness]``.
        loss: a reference; None: cross-entropy.

    Raises:
        UsageError: as of a protocol file.
    """
    is_file = data_source.endswith(".npz")
    source = {"name": "given", "source": {"npz": data_source}} if is_file else {"name": data_source}
    network: dict[str, Any] = {"name": model if model in ARCHITECTURES else "model", "build": model}
    if model_options:
        network["options"] = dict(model_options)
    training: dict[str, Any] = {"epochs": 1, "batch_size": 2}
    table = {
        "data": source,
        "model": {"width": width, "architectures": [network]},
        "training": training | ({"loss": loss} if loss else {}),
        "sharpness": dict(settings),
        "optimizers": {"none": {"optimizer": "sgd", "lr": 1.0}},
    }
    return from_table(table, SOURCE)


def measure(
    protocol: Protocol,
    architecture: str,
    weights: Path,
    names: Sequence[str],
    machine: Machine,
    seed: int | None = None,
) -> Measured:
    """Return measures of a network with these weights, on a part of its training examples.

    Args:
        protocol: says what the network, the data, the loss and the settings of measures are.
        architecture: one of the protocol's.
        weights: a .safetensors, or a state_dict that torch.save wrote.
        names: the measures.
        machine: where to measure.
        seed: whose label noise the labels have; None: the true labels.

    Raises:
        UsageError: a file is not there or damaged, or the weights do not fit the network.
    """
    where = devices.bind(devices.find(machine.device))
    devices.use_ieee_fp32(where)
    dataset = data.load_for(protocol, where, machine.data_dir)
    (case,) = grid(protocol, [architecture], list(protocol.optimizers)[:1], [seed or 0])
    model = setup.build_model(case, dataset)
    load_weights(model, weights, where)
    labels = dataset.train.labels if seed is None else setup.training_labels(case, dataset)
    rule, judged = protocol.sharpness, task.of(case)
    picked = measuring.examples(dataset, rule)
    part = data.Part(dataset.train.images[picked], labels[picked])
    with torch.no_grad():
        loss, outcome = evaluate(model, dataset, part, judged)
    values = []
    for name in tqdm(names, desc="measures", disable=None, leave=False):
        start = time.perf_counter()
        found = measuring.measure(
            [name], model, dataset, labels, rule, loss=judged.loss, standard_errors=True
        )
        devices.synchronise(where)
        values += _values(found, time.perf_counter() - start)
    return Measured(
        tuple(values),
        loss,
        outcome,
        judged.name or judged.kind,
        _warning(outcome, dataset.classes if judged.kind == "accuracy" else None),
        _about(case, dataset, weights, len(picked), where),
    )


def _values(found: measuring.Measured, seconds: float) -> list[Value]:
    """Return what one call measured: with noisy labels, each measure with the true ones too."""
    return [
        Value(
            name,
            value,
            found.values.get(f"{name}{STANDARD_ERROR}"),
            seconds,
            found.failures.get(name) or (None if value is not None else "it is not finite"),
        )
        for name, value in found.values.items()
        if not name.endswith(STANDARD_ERROR)
    ]


def _warning(accuracy: float, classes: int | None) -> str | None:
    if classes is None or accuracy > CHANCE * 100 / classes:
        return None
    return (
        f"accuracy {accuracy:.1f} % on these {classes} classes is near chance: do weights, images "
        "and their normalisation belong together?"
    )


def _about(
    case: Case, dataset: data.DataSet, weights: Path, examples: int, where: torch.device
) -> dict[str, Any]:
    rule = case.protocol.sharpness
    return {
        "model": case.architecture_settings.build,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "data": case.protocol.data.name,
        "data_digest": dataset.digest,
        "normalised_with": {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()},
        "examples": examples,
        "settings": {
            key: value for key, value in vars(rule).items() if key not in ("every_epoch", "at_end")
        },
        "flatbench": __version__,
        "torch": torch.__version__,
        "device": processor() if where.type == "cpu" else torch.cuda.get_device_name(where),
    }


def load_weights(model: nn.Module, path: Path, where: torch.device) -> None:
    """Load weights into a network.

    Raises:
        UsageError: the file is not there, is not what its ending says, or does not fit.
    """
    if not path.is_file():
        raise UsageError(f"--weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path, str(where))
        else:
            found = torch.load(path, map_location=where, weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile):
        raise UsageError(
            f"{path}: must be a .safetensors, or a state_dict that torch.save wrote"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UsageError(f"{path}: must hold a table of tensors, as state_dict() gives it")
    wanted = model.state_dict()
    for name in wanted:
        if name not in found:
            raise UsageError(f"{path}: {name} is missing, which the network has")
        if found[name].shape != wanted[name].shape:
            shapes = (list(t[name].shape) for t in (wanted, found))
            raise UsageError("{}: {} must be of shape {}, got {}".format(path, name, *shapes))
    for name in found:
        if name not in wanted:
            raise UsageError(f"{path}: {name} is no part of the network")
    model.load_state_dict(found)
