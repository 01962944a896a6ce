"""The quantities that a record has: each one's title, unit, better side and scale.

The gate, the tables and the figures look up here which side is better and what a number is called.
A protocol names the sharpness measures that it wants (`flatbench.protocols.protocol.Measure`); this
module says what they are, and a test holds the two lists together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from flatbench.records.record import Record

# The scale on which values over seeds are taken to be normal; flatbench.gate.scales says why.
Scale = Literal["linear", "log", "log-error"]

TEST_ACCURACY: Final = "test_accuracy"
TRAIN_ACCURACY: Final = "train_accuracy"
SAM_SHARPNESS: Final = "sam_sharpness"

NORMALISED: Final = "_normalised"  # follows the name of a measure taken with normalised logits
CLEAN: Final = "_clean"  # ends the name of a measure taken with the true labels
STANDARD_ERROR: Final = "_standard_error"  # ends the name of a measure's own standard error


@dataclass(frozen=True)
class Quantity:
    """One number of a record. A measure that is not listed is treated as a sharpness."""

    name: str
    title: str  # {part}: the part of the data that test_* were measured on
    better: Literal["higher", "lower"] = "lower"
    unit: str = ""
    scale: Scale = "log"
    of: str = ""  # added to the title where it heads a single value of each record
    reproducible: bool = True  # the same for every run of one seed

    def titled(self, part: str = "test") -> str:
        """Return the title of a curve over the epochs."""
        return self.title.replace("{part}", part)

    @property
    def heading(self) -> str:
        """The title of a table or figure of a single value of each record."""
        return f"{self.titled()} {self.of}".rstrip()


def _of_own_tasks(kind: str, better: Literal["higher", "lower"]) -> tuple[Quantity, ...]:
    scale: Scale = "log" if better == "lower" else "linear"
    return (
        Quantity(f"test_{kind}", f"{{part}} {kind}", better, scale=scale),
        Quantity(f"best_test_{kind}", f"{{part}} {kind} of the best epoch", better, scale=scale),
        Quantity(f"train_{kind}", f"training {kind}", better, scale=scale),
    )


def _percent(name: str, title: str) -> Quantity:
    return Quantity(name, title, "higher", "%", "log-error")


QUANTITIES: Final = {
    quantity.name: quantity
    for quantity in (
        _percent(TEST_ACCURACY, "{part} accuracy"),
        _percent("best_test_accuracy", "{part} accuracy of the best epoch"),
        Quantity("test_loss", "{part} loss"),
        _percent(TRAIN_ACCURACY, "training accuracy"),
        Quantity("train_loss", "training loss"),
        *_of_own_tasks("score", "higher"),
        *_of_own_tasks("error", "lower"),
        Quantity(SAM_SHARPNESS, "SAM sharpness ρ‖∇L‖", of="of the last epoch"),
        Quantity("ascent_sharpness", "Ascent sharpness max L(w + ε) − L(w)"),
        Quantity("ascent_sharpness_10_steps", "Ascent sharpness, 10 steps"),
        Quantity("m_sharpness", "m-sharpness"),
        Quantity("adaptive_ascent_sharpness", "Adaptive ascent sharpness"),
        Quantity("average_sharpness", "Average sharpness E[L(w + ε)] − L(w)"),
        Quantity("adaptive_average_sharpness", "Adaptive average sharpness"),
        Quantity("hessian_max_eigenvalue", "Largest eigenvalue of the Hessian"),
        Quantity("hessian_trace", "Trace of the Hessian"),
        Quantity("gradient_evaluations", "gradient evaluations"),
        Quantity("seconds", "training time", unit="s", reproducible=False),
        Quantity("relative_time", "training time / calibration's", reproducible=False),
        Quantity("peak_memory", "peak memory", unit="bytes", reproducible=False),
    )
}


def quantity(name: str) -> Quantity:
    """Return a quantity by its name; a name that is not listed gives a sharpness with that title.

    To the name of a listed measure "_normalised" may be added, and then "_clean".
    """
    found = QUANTITIES.get(name)
    if found is not None:
        return found
    plain = name.removesuffix(CLEAN)
    listed = QUANTITIES.get(plain.removesuffix(NORMALISED))
    if listed is None or listed.name in FIELDS:  # only a key of the sharpness has such twins
        return Quantity(name, name)
    title = f"{listed.title}, normalised logits" if plain.endswith(NORMALISED) else listed.title
    return Quantity(name, title if name == plain else f"{title}, true labels")


# What a run is judged by: one of them, the same in all runs of a protocol.
OUTCOMES: Final = (TEST_ACCURACY, "test_score", "test_error")


def outcome_of(records: Iterable[Record]) -> Quantity:
    """Return what these runs are judged by: accuracy, or the metric of a task of one's own."""
    for record in records:
        for name in OUTCOMES:
            if value_of(record, name) is not None:
                return QUANTITIES[name]
    return QUANTITIES[TEST_ACCURACY]


def in_training(outcome: Quantity) -> str:
    """Return the name of an outcome's twin on the training part."""
    return outcome.name.replace("test_", "train_")


def is_standard_error(name: str) -> bool:
    """Return whether a key of a record's sharpness is the standard error of a measure."""
    return name.endswith(STANDARD_ERROR)


def value_of(record: Record, name: str) -> float | None:
    """Return a record's number by its name: a field of the record, or a key of its sharpness."""
    value: float | None = getattr(record, name) if name in FIELDS else record.sharpness.get(name)
    return value


# What a record holds as fields of its own; every other quantity is a key of its sharpness.
FIELDS: Final = frozenset(name for name in QUANTITIES if hasattr(Record, name))


def results_of(record: Record) -> dict[str, float]:
    """Return a completed run's outcome and every sharpness that has a value, by name."""
    measures = [name for name in record.sharpness if not is_standard_error(name)]
    return _values(record, (*measures, *OUTCOMES, SAM_SHARPNESS))


def costs_of(record: Record) -> dict[str, float]:
    """Return the costs of a completed run that can be compared with another run's, by name."""
    return _values(record, ("relative_time", "peak_memory"))


def _values(record: Record, names: tuple[str, ...]) -> dict[str, float]:
    if record.status != "completed":
        return {}
    return {name: value for name in names if (value := value_of(record, name)) is not None}
