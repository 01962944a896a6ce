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
from pathlib import Path
from typing import Annotated, Any, Literal

from flatbench import components
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
LOSS = "cross-entropy"
OPTIMIZERS = ("sgd", "adam", "adamw")  # the short names; all else is a reference
DATA_SETS = ("digits", "fashion-mnist", "cifar10", "cifar100")

_OPTIMIZER = Check(
    lambda x: components.is_known(x, OPTIMIZERS),
    f"one of {', '.join(OPTIMIZERS)}, or {components.FORMS}, as torch.optim:RMSprop",
)
_REFERENCE = Check(components.is_reference, components.FORMS)
_LOSS = Check(lambda x: components.is_known(x, (LOSS,)), f"{LOSS}, or {components.FORMS}")

Optimizer = Annotated[str, _OPTIMIZER]
ReferenceText = Annotated[str, _REFERENCE]
Positive = Annotated[float, _POSITIVE]
NonNegative = Annotated[float, _NON_NEGATIVE]
Fraction = Annotated[float, _FRACTION]
Count = Annotated[int, _AT_LEAST_ONE]


# A key that came after the first published results has no part in the hashes while it is at its
# default, and one that bears on no result never has: those results stay valid.
_YOUNGER = {"younger": True}
_UNHASHED = {"unhashed": True}


@dataclass(frozen=True)
class Source:
    """Where a data set of one's own comes from.

    In a file it is a table with one of the kinds as its key, or a reference alone.
    """

    kind: Literal["npz", "folder", "torchvision", "function"]
    what: str  # a path relative to the protocol's file, the name of a class, or a reference
    options: dict[str, Any] = field(default_factory=dict)  # of the class or the function


@dataclass(frozen=True)
class Data:
    """The data set and what is done to it.

    ``source`` says where a data set of one's own comes from, ``{ npz = "mine.npz" }``,
    ``{ folder = "images" }``, ``{ torchvision = "KMNIST" }`` or a reference to a function; ``name``
    is then what it is called.
    """

    name: str
    label_noise: Fraction = 0.0  # part of the training labels replaced by a wrong one
    augmentation: Literal["none", "crop", "crop-flip"] = "none"
    validation: Fraction = 0.0  # part of the training images held out to choose hyperparameters
    train_examples: Count | None = None  # a stratified subset
    evaluation: Literal["test", "validation"] = "test"
    source: Source | None = field(default=None, metadata=_YOUNGER)


@dataclass(frozen=True)
class Metric:
    """What is reported in the place of accuracy, for a task of one's own."""

    ref: ReferenceText  # (outputs, targets) -> its mean over the examples
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Training:
    """What every optimizer's run shares."""

    epochs: Count
    batch_size: Annotated[int, Check(lambda x: x >= 2, "a whole number of at least 2")]
    loss: Annotated[str, _LOSS] = LOSS  # or a reference: (outputs, targets) -> mean
    metric: Metric | None = field(default=None, metadata=_YOUNGER)  # None: top-1 accuracy
    label_smoothing: Fraction = 0.0
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    milestones: Annotated[tuple[float, ...], _FRACTIONS] = ()  # of the epochs; schedule "step"
    decay: Annotated[float, Check(lambda x: 0 < x <= 1, "a number in (0, 1]")] = 0.2
    warmup_epochs: Annotated[int, _NATURAL] = 0  # linear from 0
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # auto: bf16 where the device is fast at it


@dataclass(frozen=True)
class Architecture:
    """A network: one of ours with options, or one of the user's own.

    ``build`` returns a network. It is called with what it takes of ``width``, ``in_channels``,
    ``classes`` (or ``num_classes``) and ``image_size``, and with the options.
    """

    name: str
    build: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The networks."""

    width: Count
    architectures: tuple[Architecture, ...] = field(
        default=tuple(Architecture(name, name) for name in ("resnet18", "vgg16"))
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The architectures' names, which stand in case ids and tables."""
        return tuple(architecture.name for architecture in self.architectures)

    def architecture(self, name: str) -> Architecture:
        """Return an architecture by its name."""
        return next(a for a in self.architectures if a.name == name)


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
    """One row of the table: an optimizer, and with ``rho`` SAM (or ASAM) over it.

    ``lr``, ``momentum``, ``nesterov``, ``betas`` and ``weight_decay`` are short forms of options.
    Of an optimizer that is not one of `OPTIMIZERS` they stand in ``options`` alone.

    ``epochs``, ``label_smoothing``, ``schedule`` and ``warmup_epochs`` override the protocol's, for
    rows such as a base at twice the epochs (equal compute) or a study whose scripts differed.
    """

    name: str
    optimizer: Optimizer = field(metadata={"hashed_as": "base"})
    lr: Positive | None = None
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
    options: dict[str, Any] = field(default_factory=dict, metadata=_YOUNGER)  # its constructor's
    schedule: Literal["constant", "cosine", "step"] | None = field(default=None, metadata=_YOUNGER)
    # a reference to a function: model -> parameter groups, each with an ``optimizer`` if it wants
    groups: ReferenceText | None = field(default=None, metadata=_YOUNGER)
    # what its step does with a closure, where this can't be told: see flatbench.training.stepping
    closure: Literal["evaluates", "re-evaluates"] | None = field(default=None, metadata=_YOUNGER)
    against: str | None = field(default=None, metadata=_UNHASHED)  # the row it is compared with

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
    folder: Path  # of its file: what references and paths in it are relative to
    optimizers: Mapping[str, Row]
    overrides: Mapping[tuple[str, str], Row]  # (optimizer, architecture) -> row as it runs
    sharpness: Sharpness = field(default_factory=Sharpness)
    seeds: Annotated[tuple[int, ...], _SEEDS] = (0, 1, 2)
    description: str = ""
    compare_with: str | None = None  # a protocol; the report compares the two by cell
    reference: Reference | None = None

    def optimizer(self, name: str, architecture: str) -> Row:
        """Return the row as it runs on one architecture."""
        return self.overrides.get((name, architecture), self.optimizers[name])

    def base_of(self, name: str) -> str | None:
        """Return the row that a row is compared with, or None.

        It is the one that its key ``against`` names. A SAM row without that key is compared with
        the row of its name up to the last "+": "adam+sam" with "adam".
        """
        if self.optimizers[name].against is not None:
            return self.optimizers[name].against
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
        network: str | Architecture = self.model.architecture(architecture)
        if network == Architecture(architecture, architecture):
            network = architecture  # as it was hashed when there were only ours
        return _hash(self.common_hash(), self.optimizer(optimizer, architecture), network)


def _hash(*parts: object) -> str:
    """Return the first 12 hex digits of the SHA-256 of dataclasses' and plain values' content."""
    content = json.dumps(parts, sort_keys=True, default=_content)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _content(part: Any) -> dict[str, Any]:
    """Return what of a dataclass has a part in a hash, by name."""
    found = {}
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        is_left_out = f.metadata.get("younger") and value == default
        if not is_left_out and not f.metadata.get("unhashed"):
            found[f.metadata.get("hashed_as", f.name)] = value
    return found
