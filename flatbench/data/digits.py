"""scikit-learn's digits (Alpaydin and Kaynak 1998), which need no download."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from flatbench.data.dataset import Examples


def read() -> Examples:
    """Return 1,797 digits (8×8, 17 grey levels) and their classes; no part is a test part."""
    bunch = load_digits()
    return bunch.images[..., None].astype(np.uint8), bunch.target.astype(np.int64)
