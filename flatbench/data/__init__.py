"""Data sets as whole tensors on the device, and the batches of them."""

from flatbench.data.sources import (
    DOWNLOADS,
    PADDING,
    DataSet,
    Part,
    augment,
    batches,
    download,
    folder_of,
    load,
    noisy_labels,
    pad,
)

__all__ = [
    "DOWNLOADS",
    "PADDING",
    "DataSet",
    "Part",
    "augment",
    "batches",
    "download",
    "folder_of",
    "load",
    "noisy_labels",
    "pad",
]
