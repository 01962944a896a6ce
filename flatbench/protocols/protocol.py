"""Protocols: what is trained, on what, for how long, and with which optimizers.

The frozen dataclasses are the schema of a protocol's TOML file: an annotation says what a key may
hold, and a comment what it means. `flatbench.protocols.reading` fills them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from flatbench.models import ARCHITECTURES
from flatbench.protocols.schema import Check

_POSITIVE = Check(lambda x: x > 0, "a number above 0")
_NON_NEGATIVE = Check(lambda x: x >= 0, "a number of at least 0")
_FRACTION = Check(lambda x: 0 <= x < 1, "a number in [0, 1)")
_AT_LEAST_ONE = Check(lambda x: x >= 1, "a whole number of at least 1")
_NATURAL = Check(lambda x: x >= 0, "a whole number of at least 0")
_FRACTIONS = Check(
    lambda xs: all(0 < x < 1 for x in xs) and list(xs) == sorted(set(xs)),
    "rising numbers between 0 and 1",
)
_BETAS = Check(lambda xs: len(xs) == 2 and all(0 <= x < 1 for x in xs), "two numbers in [0, 1)")
_SEEDS = Check(
    lambda xs: len(xs) > 0 and len(set(xs)) == len(xs) and min(xs) >= 0,
    "a list of different whole numbers of at least 0",
)
_KNOWN_ARCHITECTURES = Check(
    lambda xs: len(xs) > 0 and len(set(xs)) == len(xs) and set(xs) <= set(ARCHITECTURES),
    f"a list of different names out of {', '.join(ARCHITECTURES)}",
)

Positive = Annotated[float, _POSITIVE]
NonNegative = Annotated[float, _NON_NEGATIVE]
Fraction = Annotated[float, _FRACTION]
Count = Annotated[int, _AT_LEAST_ONE]


# Of a key that came after the first published results: it has no part in the hashes while it is at
# its default, so that those results stay valid.
_YOUNGER = {"younger": True}


@dataclass(frozen=True)
class Data:
    """The data set and what is done to it."""

    name: Literal["digits", "fashion-mnist", "cifar10", "cifar100"]
    label_noise: Fraction = 0.0  # part of the training labels replaced by a wrong one
    augmentation: Literal["none", "crop", "crop-flip"] = "none"
    validation: Fraction = 0.0  # part of the training images held out to choose hyperparameters
    train_examples: Count | None = None  # a stratified subset
    evaluation: Literal["test", "validation"] = "test"


@dataclass(frozen=True)
class Training:
    """What every optimizer's run shares."""

    epochs: Count
    batch_size: Annotated[int, Check(lambda x: x >= 2, "a whole number of at least 2")]
    loss: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: Fraction = 0.0
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    milestones: Annotated[tuple[float, ...], _FRACTIONS] = ()  # of the epochs; schedule "step"
    decay: Annotated[float, Check(lambda x: 0 < x <= 1, "a number in (0, 1]")] = 0.2
    warmup_epochs: Annotated[int, _NATURAL] = 0  # linear from 0
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # auto: bf16 where the device is fast at it


@dataclass(frozen=True)
class Model:
    """The networks."""

    width: Count
    architectures: Annotated[tuple[str, ...], _KNOWN_ARCHITECTURES] = ARCHITECTURES


Measure = Literal[
    "ascent_sharpness",
    "ascent_sharpness_10_steps",
    "m_sharpness",
    "adaptive_ascent_sharpness",
    "average_sharpness",
    "adaptive_average_sharpness",
    "hessian_max_eigenvalue",
    "hessian_trace",
]


@dataclass(frozen=True)
class Sharpness:
    """How sharpness is measured: alike in every cell, whatever the row trains with.

    ``rho``, ``adaptive`` and ``eta`` are `sam_sharpness`'s, which every epoch records. The others
    are for the measures on a fixed part of the training images.
    """

    rho: Positive = 0.05
    adaptive: bool = False
    eta: NonNegative = 0.0
    every_epoch: tuple[Measure, ...] = ()
    at_end: tuple[Measure, ...] = ()
    examples: Count = 256
    examples_seed: Annotated[int, _NATURAL] = field(default=0, metadata=_YOUNGER)
    m: Count = field(default=16, metadata=_YOUNGER)  # of m_sharpness: examples to a group
    batchnorm: Literal["eval", "train"] = "eval"
    adaptive_rho: Positive = 0.5  # of the adaptive ascent; a length relative to |w|
    sigma: Positive = 0.01  # of the average's noise
    adaptive_sigma: Positive = 0.1  # relative to |w|


@dataclass(frozen=True)
class Row:
    """One row of the table. With ``rho`` it is SAM (or ASAM) over the base, else the base alone.

    ``epochs``, ``label_smoothing`` and ``warmup_epochs`` override the protocol's, for rows such
    as a base at twice the epochs (equal compute) or a study whose scripts differed.
    """

    name: str
    base: Literal["sgd", "adam", "adamw"]
    lr: Positive
    momentum: Fraction = 0.0
    nesterov: bool = False
    betas: Annotated[tuple[float, ...], _BETAS] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    rho: Positive | None = None
    adaptive: bool = False
    eta: NonNegative = 0.0
    epochs: Count | None = None
    label_smoothing: Fraction | None = None
    warmup_epochs: Annotated[int, _NATURAL] | None = None

    @property
    def is_sam(self) -> bool:
        """Whether the row perturbs."""
        return self.rho is not None

    @property
    def gradients_per_step(self) -> int:
        """How many gradients a step evaluates: what equal compute counts."""
        return 2 if self.is_sam else 1


_MEAN_AND_STD = Check(
    lambda xs: len(xs) == 2 and 0 <= xs[0] <= 100 and xs[1] >= 0,
    "[mean, std] of an accuracy in percent",
)


@dataclass(frozen=True)
class Reference:
    """Published results that this protocol reproduces; the report shows them beside its own."""

    source: str
    seeds: Count  # how many runs a mean and its sample std are over
    test_accuracy: dict[str, dict[str, Annotated[tuple[float, ...], _MEAN_AND_STD]]]
    # architecture -> row -> (mean, std)


@dataclass(frozen=True)
class Protocol:
    """A validated protocol file."""

    name: str
    data: Data
    training: Training
    model: Model
    optimizers: Mapping[str, Row]
    overrides: Mapping[tuple[str, str], Row]  # (optimizer, architecture) -> row as it runs
    sharpness: Sharpness = field(default_factory=Sharpness)
    seeds: Annotated[tuple[int, ...], _SEEDS] = (0, 1, 2)
    description: str = ""
    against: str | None = None  # a protocol whose runs the report compares these with, by cell
    reference: Reference | None = None

    def optimizer(self, name: str, architecture: str) -> Row:
        """Return the row as it runs on one architecture."""
        return self.overrides.get((name, architecture), self.optimizers[name])

    def base_of(self, name: str) -> str | None:
        """Return the row a SAM row is compared with: its name up to the last "+", if that is one.

        "adam+sam" is paired with "adam"; a row that does not perturb is paired with none.
        """
        base, plus, _ = name.rpartition("+")
        if not plus or not self.optimizers[name].is_sam or base not in self.optimizers:
            return None
        return base

    def common_hash(self) -> str:
        """Return 12 hex digits over what all cells of the table share; unequal: no one table."""
        return _hash(self.data, self.training, self.model.width, self.sharpness)

    def cell_hash(self, optimizer: str, architecture: str) -> str:
        """Return 12 hex digits over everything in the file that bears on one cell's result.

        Comments, descriptions, seeds and the other rows do not.
        """
        return _hash(self.common_hash(), self.optimizer(optimizer, architecture), architecture)


def _hash(*parts: object) -> str:
    """Return the first 12 hex digits of the SHA-256 of dataclasses' and plain values' content."""
    content = json.dumps(parts, sort_keys=True, default=_content)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _content(part: Any) -> dict[str, Any]:
    return {
        f.name: value
        for f in dataclasses.fields(part)
        if (value := getattr(part, f.name)) != f.default or not f.metadata.get("younger")
    }
