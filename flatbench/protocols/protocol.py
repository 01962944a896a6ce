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
from flatbench.protocols.methods import Method
from flatbench.protocols.schema import AT_LEAST_ONE, SEEDS, Check
from flatbench.protocols.tuning import Tuning

_POSITIVE = Check(lambda x: x > 0, "a number above 0")
# beyond it a perturbed network has no loss that float32 could hold
_RADIUS = Check(lambda x: 0 < x <= 1e6, "a number above 0, at most 1e6")
_NON_NEGATIVE = Check(lambda x: x >= 0, "a number of at least 0")
_FRACTION = Check(lambda x: 0 <= x < 1, "a number in [0, 1)")
_PART = Check(lambda x: 0 < x < 1, "a number between 0 and 1")
_NATURAL = Check(lambda x: x >= 0, "a whole number of at least 0")
_FRACTIONS = Check(
    lambda xs: all(0 < x < 1 for x in xs) and list(xs) == sorted(set(xs)),
    "rising numbers between 0 and 1",
)
_BETAS = Check(lambda xs: len(xs) == 2 and all(0 <= x < 1 for x in xs), "two numbers in [0, 1)")
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
Radius = Annotated[float, _RADIUS]
Fraction = Annotated[float, _FRACTION]
Count = Annotated[int, AT_LEAST_ONE]


# A key that came after the first published results has no part in the hashes while it is at its
# default, and one that bears on no result never has: those results stay valid.
_YOUNGER = {"younger": True}
_UNHASHED = {"unhashed": True}


@dataclass(frozen=True)
class Source:
    """Where a data set of one's own comes from.

    In a file it is a table with one of the kinds as its key, or a reference alone.
    """

    # What is read.
    kind: Literal["npz", "folder", "torchvision", "function"]
    # A path relative to the protocol's file, the name of a class, or a reference.
    what: str
    # Handed over to the class or the function.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The data set and what is done to it.

    ``source`` says where a data set of one's own comes from, ``{ npz = "mine.npz" }``,
    ``{ folder = "images" }``, ``{ torchvision = "KMNIST" }`` or a reference to a function; ``name``
    is then what it is called.
    """

    # What the data set is called: one of flatbench's own, or with a source any other name.
    name: str
    # The part of the training labels that a wrong class replaces.
    label_noise: Fraction = 0.0
    # A random crop of images padded by 4 pixels, and a random flip.
    augmentation: Literal["none", "crop", "crop-flip"] = "none"
    # The part of the training images that is held out to choose hyperparameters.
    validation: Fraction = 0.0
    # The part of all images that is the test part, where the data set has none; default: a fifth.
    test: Annotated[float, _PART] | None = field(default=None, metadata=_YOUNGER)
    # How many training images are used, the same fixed ones in every run; default: all.
    train_examples: Count | None = None
    # The part that accuracy is measured on.
    evaluation: Literal["test", "validation"] = "test"
    # Where a data set of one's own comes from: a table of a kind, or a reference.
    source: Source | None = field(default=None, metadata=_YOUNGER)


@dataclass(frozen=True)
class Metric:
    """What is reported in the place of accuracy, for a task of one's own."""

    # A function of (outputs, targets): its mean over the examples.
    ref: ReferenceText
    # Which side is better.
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Training:
    """What every optimizer's run shares."""

    # Passes over the training images.
    epochs: Count
    # Examples a step.
    batch_size: Annotated[int, Check(lambda x: x >= 2, "a whole number of at least 2")]
    # What is minimised: cross-entropy, or a function of (outputs, targets) that returns a mean.
    loss: Annotated[str, _LOSS] = LOSS
    # What is reported instead of top-1 accuracy.
    metric: Metric | None = field(default=None, metadata=_YOUNGER)
    # Smoothing of the cross-entropy in training; never in evaluation.
    label_smoothing: Fraction = 0.0
    # How the learning rate falls: to 0 by a cosine, by steps, or not at all.
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    # The fractions of the epochs at which the schedule "step" decays.
    milestones: Annotated[tuple[float, ...], _FRACTIONS] = ()
    # What the learning rate is multiplied by at each milestone.
    decay: Annotated[float, Check(lambda x: 0 < x <= 1, "a number in (0, 1]")] = 0.2
    # Epochs in which the learning rate rises linearly from 0.
    warmup_epochs: Annotated[int, _NATURAL] = 0
    # The precision of training; auto is bf16 where the device is fast at it.
    precision: Literal["fp32", "bf16", "auto"] = "fp32"


@dataclass(frozen=True)
class Architecture:
    """A network: one of ours with options, or one of the user's own.

    ``build`` returns a network. It is called with what it takes of ``width``, ``in_channels``,
    ``classes`` (or ``num_classes``) and ``image_size``, and with the options.
    """

    # What the network is called in case ids and tables.
    name: str
    # One of flatbench's own, or a reference to what returns a network; default: the name.
    build: str
    # What it is built with, beside what the data and the protocol say.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The networks."""

    # Channels of the first stage; 64 is the published network.
    width: Count
    # The networks: names of flatbench's own, and tables.
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

    # The radius of sam_sharpness, which every epoch records, and of the ascents.
    rho: Radius = 0.05
    # Whether sam_sharpness is ASAM's, relative to |w|.
    adaptive: bool = False
    # Added to |w| in an adaptive sam_sharpness.
    eta: NonNegative = 0.0
    # The measures after each epoch.
    every_epoch: tuple[Measure, ...] = ()
    # The measures of the final weights.
    at_end: tuple[Measure, ...] = ()
    # Those of the final weights that are taken with normalised logits, too.
    normalised: tuple[Measure, ...] = field(default=(), metadata=_YOUNGER)
    # Whether a measure is taken with the true labels, too, where a run trains on noisy ones.
    true_labels: bool = field(default=True, metadata=_YOUNGER)
    # How many training images the measures are on: a fixed part, unaugmented.
    examples: Count = 256
    # Which images those are.
    examples_seed: Annotated[int, _NATURAL] = field(default=0, metadata=_YOUNGER)
    # Examples to a group of m_sharpness.
    m: Count = field(default=16, metadata=_YOUNGER)
    # Where BatchNorm's statistics come from: the running ones, or the examples measured on.
    batchnorm: Literal["eval", "train"] = "eval"
    # The radius of the adaptive ascent, relative to |w|.
    adaptive_rho: Radius = 0.5
    # The standard deviation of average_sharpness's noise.
    sigma: Radius = 0.01
    # That of the adaptive noise, relative to |w|.
    adaptive_sigma: Radius = 0.1


@dataclass(frozen=True)
class Row:
    """One row of the table: an optimizer, and with ``rho`` SAM (or ASAM) over it.

    ``lr``, ``momentum``, ``nesterov``, ``betas`` and ``weight_decay`` are short forms of options.
    Of an optimizer that is not one of `OPTIMIZERS` they stand in ``options`` alone.

    ``epochs``, ``label_smoothing``, ``schedule`` and ``warmup_epochs`` override the protocol's, for
    rows such as a base at twice the epochs (equal compute) or a study whose scripts differed.
    """

    # The row's name: the key of its table.
    name: str
    # sgd, adam or adamw, or a reference to a class; base is its old spelling.
    optimizer: Optimizer = field(metadata={"hashed_as": "base"})
    # The learning rate: a short form of an option.
    lr: Positive | None = None
    # SGD's momentum: a short form of an option.
    momentum: Fraction = 0.0
    # Whether SGD's momentum is Nesterov's: a short form of an option.
    nesterov: bool = False
    # Adam's averages: a short form of an option.
    betas: Annotated[tuple[float, ...], _BETAS] = (0.9, 0.999)
    # Weight decay: a short form of an option.
    weight_decay: NonNegative = 0.0
    # SAM's radius; with it, SAM takes its steps over the optimizer.
    rho: Positive | None = None
    # Whether the perturbation is ASAM's, relative to |w|.
    adaptive: bool = False
    # Added to |w| in an adaptive perturbation.
    eta: NonNegative = 0.0
    # Which method of the family, if it is not SAM; a key of the long form, `perturbation`.
    method: Method | None = field(default=None, metadata=_YOUNGER)
    # Instead of the protocol's, as for a base at twice the epochs (equal compute).
    epochs: Count | None = None
    # Instead of the protocol's.
    label_smoothing: Fraction | None = None
    # Instead of the protocol's.
    warmup_epochs: Annotated[int, _NATURAL] | None = None
    # What the optimizer's class is constructed with.
    options: dict[str, Any] = field(default_factory=dict, metadata=_YOUNGER)
    # Instead of the protocol's; it multiplies each group's own learning rate.
    schedule: Literal["constant", "cosine", "step"] | None = field(default=None, metadata=_YOUNGER)
    # A function: model -> parameter groups, each with an optimizer of its own if it wants.
    groups: ReferenceText | None = field(default=None, metadata=_YOUNGER)
    # What its step does with a closure, where flatbench cannot tell.
    closure: Literal["evaluates", "re-evaluates"] | None = field(default=None, metadata=_YOUNGER)
    # The row that it is compared with; default: of a SAM row, the one before its last +.
    against: str | None = field(default=None, metadata=_UNHASHED)

    @property
    def is_sam(self) -> bool:
        """Whether the row perturbs."""
        return self.rho is not None

    @property
    def gradients_per_step(self) -> float:
        """How many gradients a step is expected to evaluate, before one has been counted.

        Time left is estimated by it. A record has what `flatbench.training.stepping` counted.
        """
        if self.method is not None:
            return self.method.gradients_per_step
        return 2.0 if self.is_sam else 1.0


_MEAN_AND_STD = Check(
    lambda xs: len(xs) == 2 and 0 <= xs[0] <= 100 and xs[1] >= 0,
    "[mean, std] of an accuracy in percent",
)


@dataclass(frozen=True)
class Reference:
    """Published results that this protocol reproduces; the report shows them beside its own."""

    # Where they are published.
    source: str
    # How many runs a mean and its sample standard deviation are over.
    seeds: Count
    # Architecture -> row -> [mean, standard deviation], percent.
    test_accuracy: dict[str, dict[str, Annotated[tuple[float, ...], _MEAN_AND_STD]]]


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
    # One run of each cell for each of them.
    seeds: Annotated[tuple[int, ...], SEEDS] = (0, 1, 2)
    # What the command list says of it, in a line.
    description: str = ""
    # A protocol whose runs the report compares these with, cell by cell; against is its old name.
    compare_with: str | None = None
    reference: Reference | None = None
    tuning: Tuning | None = None

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
