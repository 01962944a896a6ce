"""`flatbench sharpness`: every measure, with its error, of a network that is already trained."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from flatbench import components, data
from flatbench.errors import UsageError
from flatbench.execution import Machine
from flatbench.models import ARCHITECTURES
from flatbench.protocols.cases import Case, grid
from flatbench.protocols.protocol import DATA_SETS, Protocol
from flatbench.protocols.reading import from_table
from flatbench.records import provenance
from flatbench.records.quantities import CLEAN, NORMALISED
from flatbench.study.weights import load_into
from flatbench.text import did_you_mean
from flatbench.training import devices, identity, measuring, setup, task
from flatbench.training.step import evaluate

SOURCE = "sharpness"
# Standard deviations above what naming the most frequent class gets right: fewer are chance.
CHANCE = 2
# Of the measures that an iteration finds: how far the true value may be, as a part of the value.
TOLERANCES = {"hessian_max_eigenvalue": measuring.EIGENVALUE_TOLERANCE}


@dataclass(frozen=True)
class Value:
    """One measure of a network.

    Attributes:
        name: the measure's; ends in "_clean" where it is taken with the true labels.
        value: None where it could not be taken.
        standard_error: None where nothing is averaged.
        interval: half of the 95 % interval by Student's t; None as above.
        tolerance: an eigenvalue lies within this part of the value; None of other measures.
        gradient_evaluations: the cost, in passes forward and back over the examples.
        seconds: the time, with that of the measure's twin where there is one.
        failure: why there is no value, or why it is not to be trusted; or None.
    """

    name: str
    value: float | None
    standard_error: float | None
    interval: float | None
    tolerance: float | None
    gradient_evaluations: float | None
    seconds: float
    failure: str | None


@dataclass(frozen=True)
class Measured:
    """All measures, and what they are of.

    Attributes:
        values: in the order asked for.
        loss: the mean over the examples measured on, in evaluation mode; None: not finite.
        outcome: accuracy in percent, or what the task's own metric gives, on these examples.
        outcome_name: what that is.
        inputs: what was done to them, in words.
        warning: why the weights may not fit the data, or None.
        about: settings, provenance and digests.
    """

    values: tuple[Value, ...]
    loss: float | None
    outcome: float | None
    outcome_name: str
    inputs: str
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
    if not components.is_known(model, ARCHITECTURES):
        names = ", ".join(ARCHITECTURES)
        hint = did_you_mean(model, ARCHITECTURES)
        raise UsageError(
            f"--model must be one of {names}, or {components.FORMS}, got {model!r}{hint}"
        )
    is_file = data_source.endswith(".npz")
    if is_file and not Path(data_source).is_file():
        raise UsageError(f"--data: there is no file {data_source}")
    if not is_file and data_source not in DATA_SETS:
        names, hint = ", ".join(DATA_SETS), did_you_mean(data_source, DATA_SETS)
        raise UsageError(
            f"--data must be an .npz file, or one of {names}, got {data_source!r}{hint}"
        )
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
    *,
    seed: int | None = None,
    normalises: bool = True,
) -> Measured:
    """Return measures of a network with these weights, on a part of its training examples.

    Args:
        protocol: says what the network, the data, the loss and the settings of measures are.
        architecture: one of the protocol's.
        weights: a .safetensors, or a state_dict that torch.save wrote.
        names: the measures.
        machine: where to measure.
        seed: whose label noise the labels have; None: the true labels.
        normalises: False leaves the inputs as the file has them.

    Raises:
        UsageError: a file is not there or damaged, the network does not take the data, or the
            weights do not fit the network.
    """
    where = devices.bind(devices.find(machine.device))
    devices.use_ieee_fp32(where)
    dataset = data.load_for(protocol, where, machine.data_dir)
    if not normalises:
        dataset = dataclasses.replace(
            dataset, mean=torch.zeros_like(dataset.mean), std=torch.ones_like(dataset.std)
        )
    (case,) = grid(protocol, [architecture], list(protocol.optimizers)[:1], [seed or 0])
    setup.check_model(case, dataset)
    model = setup.build_model(case, dataset)
    load_into(model, weights, where)
    labels = dataset.train.labels if seed is None else setup.training_labels(case, dataset)
    rule, judged = protocol.sharpness, task.of(case)
    picked = measuring.examples(dataset, rule)
    part = data.Part(dataset.train.images[picked], labels[picked])
    loss, outcome = evaluate(model, dataset, part, judged)
    values = []
    for name in tqdm(names, desc="measures", disable=None, leave=False):
        start = time.perf_counter()
        found = measuring.measure([name], model, dataset, labels, rule, loss=judged.loss)
        devices.synchronise(where)
        values += _values(found, time.perf_counter() - start)
    is_accuracy = judged.kind == "accuracy" and dataset.classes is not None
    return Measured(
        tuple(values),
        measuring.finite(loss),
        measuring.finite(outcome),
        judged.name or judged.kind,
        _inputs(dataset, normalises),
        _warning(loss, outcome, part.labels if is_accuracy else None),
        _about(case, dataset, weights, len(picked), where) | {"label_noise_of_seed": seed},
    )


def _values(found: measuring.Measured, seconds: float) -> list[Value]:
    """Return what one call measured: with noisy labels, each measure with the true ones too."""
    values = []
    for name, value in found.values.items():
        taken, failure = found.taken.get(name), found.failures.get(name)
        if failure is None and value is None:
            failure = "it is not finite"
        elif taken is not None and not taken.converged:
            failure = "it has not converged: the value is a bound from below"
        error = None if taken is None or taken.standard_error is None else taken.standard_error
        values.append(
            Value(
                name,
                value,
                None if error is None else measuring.finite(error),
                None if error is None or taken is None else _half_interval(error, taken.samples),
                TOLERANCES.get(name.removesuffix(CLEAN).removesuffix(NORMALISED))
                if failure is None
                else None,
                None if taken is None else taken.gradient_evaluations,
                seconds,
                failure,
            )
        )
    return values


def _half_interval(error: float, samples: int) -> float | None:
    return measuring.finite(float(stats.t.ppf(0.975, samples - 1)) * error)


def _inputs(dataset: data.DataSet, normalises: bool) -> str:
    """Return what was done to the inputs before the network saw them."""
    if dataset.train.images.dtype == torch.int64 or dataset.mean.ndim == 0:
        return "as they are in the data"
    if not normalises:
        return "as they are in the data, not normalised"
    by = "channel" if dataset.holds_images else "column"
    if len(dataset.mean) > 4:
        return f"normalised by {by}, with mean and std of the training part"
    mean, std = (", ".join(f"{x:.4g}" for x in t.tolist()) for t in (dataset.mean, dataset.std))
    return f"normalised by {by}, with the training part's mean {mean} and std {std}"


def _warning(loss: float, accuracy: float, labels: Tensor | None) -> str | None:
    """Return why weights and data may not belong together.

    Labels [n] of classes are those measured on. Who names the most frequent one each time is right
    in a part p of them, and √(p (1 − p) / n) is what chance adds to that.
    """
    if not math.isfinite(loss):
        return "the loss is not finite: do the weights hold numbers?"
    if labels is None:
        return None
    p = float(labels.bincount().max()) / len(labels)
    if accuracy / 100 > p + CHANCE * math.sqrt(p * (1 - p) / len(labels)):
        return None
    return (
        f"accuracy {accuracy:.1f} % is chance: to name the most frequent class gets {100 * p:.1f} "
        "%. Do weights and data belong together, with the inputs' scale, normalisation and order "
        "of channels?"
    )


def _about(
    case: Case, dataset: data.DataSet, weights: Path, examples: int, where: torch.device
) -> dict[str, Any]:
    rule, source = case.protocol.sharpness, case.protocol.data.source
    return {
        "model": case.architecture_settings.build,
        "model_options": case.architecture_settings.options,
        "components": identity.sources(case),
        "weights": weights.name,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "data": case.protocol.data.name if source is None else Path(source.what).name,
        "data_digest": dataset.digest,
        "normalised_with": {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()},
        "examples": examples,
        "settings": {
            key: value
            for key, value in vars(rule).items()
            if key not in ("every_epoch", "at_end", "normalised")
        },
        "provenance": provenance.describe(where, "fp32"),
    }


# --- as text


def text(found: Measured) -> str:
    """Return what was measured as a table, below what it is of."""
    on = f"{found.about['examples']} training examples of {found.about['data']}"
    unit = " %" if found.outcome_name == "accuracy" else ""
    lines = [
        f"{on}: loss {_number(found.loss)}, {found.outcome_name} {_number(found.outcome)}{unit}",
        f"inputs: {found.inputs}",
    ]
    if found.warning is not None:
        lines.append(f"warning: {found.warning}")
    header = ["measure", "value", "95 % interval", "gradients", "seconds"]
    rows = [
        (
            v.name,
            _number(v.value),
            _error(v),
            "–" if v.gradient_evaluations is None else f"{v.gradient_evaluations:.1f}",
            f"{v.seconds:.1f}",
        )
        for v in found.values
    ]
    align = ("left", "right", "right", "right", "right")
    table = tabulate(rows, header, tablefmt="plain", disable_numparse=True, colalign=align)
    return "\n".join([*lines, "", table])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _error(v: Value) -> str:
    """Return half an interval; of a measure that averages nothing, what is known instead."""
    if v.interval is not None:
        return f"± {v.interval:.2g}" if v.interval < 99.5 else f"± {v.interval:.0f}"
    if v.tolerance is not None:
        return f"none, within {100 * v.tolerance:g} %"
    return "none" if v.value is not None else "–"
