"""Data sets as whole tensors on the device, and their batches."""

from flatbench.data.batching import PADDING, augment, batches, noisy_labels, pad
from flatbench.data.sources import DOWNLOADS, DataSet, Part, download, folder_of, load

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
