"""scikit-learn's digits (Alpaydin and Kaynak 1998), which need no download."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from flatbench.data.dataset import Examples
from flatbench.data.splits import TEST_FRACTION, split


def read() -> tuple[Examples, Examples]:
    """Return 1,797 digits (8×8, 17 grey levels); a fixed fifth of them is the test part."""
    bunch = load_digits()
    images = bunch.images[..., None].astype(np.uint8)
    return split((images, bunch.target.astype(np.int64)), TEST_FRACTION, "a fifth")
