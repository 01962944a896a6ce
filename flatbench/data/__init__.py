"""Data sets as whole tensors on the device, and their batches.

Four come with flatbench: `digits`, `fashion` (Fashion-MNIST) and `cifar` read them. `own` reads
those that a protocol gives a source for. `loading` splits what was read and puts it on the device,
`batching` does what training does with it.
"""

from flatbench.data.batching import (
    PADDING,
    augment,
    batch_count,
    batches,
    noisy_labels,
    pad,
    parts,
)
from flatbench.data.dataset import DataSet, Part
from flatbench.data.downloads import DOWNLOADS, download, folder_of
from flatbench.data.loading import load, load_for

__all__ = [
    "DOWNLOADS",
    "PADDING",
    "DataSet",
    "Part",
    "augment",
    "batch_count",
    "batches",
    "download",
    "folder_of",
    "load",
    "load_for",
    "noisy_labels",
    "pad",
    "parts",
]
