"""The methods of the SAM family: what a row's perturbation may say beside rho.

A method's class is its schema, as the classes of `flatbench.protocols.protocol` are; an instance is
what a row says. `flatbench.training.optimizers` makes the optimizer of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from flatbench.protocols.schema import AT_LEAST_ONE, Check

_NON_NEGATIVE = Check(lambda x: x >= 0, "a number of at least 0")
_PART = Check(lambda x: 0 < x < 1, "a number between 0 and 1")
_SHARE = Check(lambda x: 0 <= x <= 1, "a number from 0 to 1")

Count = Annotated[int, AT_LEAST_ONE]
NonNegative = Annotated[float, _NON_NEGATIVE]


@dataclass(frozen=True)
class Periodic:
    """SAM at every k-th step, the base's own step between (Composer)."""

    # k: the k-th step is the first one of SAM.
    interval: Count
    name: Literal["periodic-sam"] = "periodic-sam"

    @property
    def gradients_per_step(self) -> float:
        """How many gradients a step is expected to evaluate."""
        return 1 + 1 / self.interval


@dataclass(frozen=True)
class Late:
    """SAM in the last part of the training, the base's own steps before (Zhou et al. 2025)."""

    # The part of all steps, at the end, that are SAM's.
    part: Annotated[float, _PART]
    name: Literal["late-sam"] = "late-sam"

    @property
    def gradients_per_step(self) -> float:
        """How many gradients a step is expected to evaluate."""
        return 1 + self.part


@dataclass(frozen=True)
class Momentum:
    """The perturbation goes along the base's momentum: one gradient a step (Becker et al. 2024)."""

    name: Literal["momentum-sam"] = "momentum-sam"
    gradients_per_step = 1.0


@dataclass(frozen=True)
class Friendly:
    """The perturbation climbs along what is new in a batch's gradient (Li et al. 2024)."""

    # How much of the average gradient is taken away.
    sigma: NonNegative = 1.0
    # What the average keeps of itself at each step.
    lmbda: Annotated[float, _SHARE] = 0.9
    name: Literal["friendly-sam"] = "friendly-sam"
    gradients_per_step = 2.0


@dataclass(frozen=True)
class Normalization:
    """The perturbation moves the normalisation layers alone (Mueller et al. 2023)."""

    name: Literal["sam-on"] = "sam-on"
    gradients_per_step = 2.0


@dataclass(frozen=True)
class GSAM:
    """The base also climbs, across SAM's gradient, the loss at w (Zhuang et al. 2022)."""

    # The share of the first gradient's part across the second one.
    alpha: NonNegative = 0.4
    # The radius at a learning rate of 0; without it rho does not follow the learning rate.
    rho_min: NonNegative | None = None
    name: Literal["gsam"] = "gsam"
    gradients_per_step = 2.0


@dataclass(frozen=True)
class LookSAM:
    """SAM at every k-th step; between, what it added is added again (Liu et al. 2022)."""

    # k: the first step is SAM's.
    interval: Count = 5
    # The length of what is added between, in lengths of the gradient.
    alpha: NonNegative = 0.7
    name: Literal["looksam"] = "looksam"

    @property
    def gradients_per_step(self) -> float:
        """How many gradients a step is expected to evaluate."""
        return 1 + 1 / self.interval


@dataclass(frozen=True)
class MicroBatch:
    """A perturbation for each m examples of a batch, the gradients averaged (m-SAM)."""

    # The examples of a part; the last one has what is left.
    m: Count
    name: Literal["micro-batch-sam"] = "micro-batch-sam"
    gradients_per_step = 2.0


Method = Periodic | Late | Momentum | Friendly | Normalization | GSAM | LookSAM | MicroBatch

METHODS: Mapping[str, type[Method]] = {
    "periodic-sam": Periodic,
    "late-sam": Late,
    "momentum-sam": Momentum,
    "friendly-sam": Friendly,
    "sam-on": Normalization,
    "gsam": GSAM,
    "looksam": LookSAM,
    "micro-batch-sam": MicroBatch,
}
