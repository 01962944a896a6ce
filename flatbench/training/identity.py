"""What one run must share with another to stand for it: protocol, code, data and device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flatbench import components, data
from flatbench.protocols.cases import Case
from flatbench.records import provenance


def sources(case: Case) -> dict[str, str]:
    """Return what identifies the code behind each reference of a case, by the reference.

    Raises:
        UsageError: a reference names nothing, or its code cannot be imported.
    """
    found = {}
    for reference in case.references():
        where = f"protocol {case.protocol.name}"
        component = components.find(reference, case.protocol.folder, {}, where)
        found[reference] = component.source or ""
    return found


def key(case: Case, dataset: data.DataSet, machine: Iterable[str], found: Mapping[str, str]) -> str:
    """Return what identifies a case's run on a machine; see `flatbench.records.provenance.key`.

    ``found`` is what `sources` returned of the case.
    """
    behind = [f"{reference} {source}" for reference, source in found.items()]
    return provenance.key(case.cell_hash(), case.seed, machine, dataset.digest, behind)
