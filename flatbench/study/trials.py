"""The trials of a tuning, as a protocol of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flatbench.errors import UsageError
from flatbench.protocols.protocol import Protocol, Row
from flatbench.protocols.tuning import Tuning, with_values
from flatbench.study.space import points
from flatbench.text import did_you_mean


def tuning_of(protocol: Protocol) -> Tuning:
    """Return a protocol's tuning.

    Raises:
        UsageError: it has none.
    """
    if protocol.tuning is None:
        raise UsageError(f"protocol {protocol.name!r}: table [tuning] is missing")
    return protocol.tuning


def trials_of(protocol: Protocol, rows: Sequence[str]) -> Protocol:
    """Return the protocol that trains every trial of these rows on the validation part.

    Its rows are ROW.t00, ROW.t01 and so on; it measures no sharpness, since nothing is chosen by
    it. A row's own values on an architecture stay where they are not tuned.

    Raises:
        UsageError: the protocol has no tuning, or a row has no space.
    """
    tuning = tuning_of(protocol)
    found: dict[str, Row] = {}
    overrides: dict[tuple[str, str], Row] = {}
    for name in rows:
        if name not in tuning.space:
            hint = did_you_mean(name, tuning.space)
            raise UsageError(
                f"protocol {protocol.name!r}: row must be one of {', '.join(tuning.space)}, which "
                f"[tuning.space] has, got {name!r}{hint}"
            )
        for number, values in enumerate(points(tuning.space[name], tuning.trials)):
            trial = trial_name(name, number)
            found[trial] = _trial(protocol.optimizers[name], trial, values)
            for (row, architecture), changed in protocol.overrides.items():
                if row == name:
                    overrides[trial, architecture] = _trial(changed, trial, values)
    return dataclasses.replace(
        protocol,
        name=f"{protocol.name}-tuning",
        description=f"the trials of {protocol.name}'s [tuning], on its validation part",
        seeds=tuning.seeds,
        data=dataclasses.replace(protocol.data, evaluation="validation"),
        sharpness=dataclasses.replace(protocol.sharpness, every_epoch=(), at_end=(), normalised=()),
        optimizers=found,
        overrides=overrides,
        compare_with=None,
        reference=None,
        tuning=None,
    )


def trial_name(row: str, number: int) -> str:
    """Return the name of a row's trial, such as "sgd.t03"."""
    return f"{row}.t{number:02}"


def _trial(row: Row, name: str, values: dict[str, object]) -> Row:
    return dataclasses.replace(with_values(row, values), name=name, against=None)
