"""Fixed splits of a part: stratified for class labels, at random for other targets."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import train_test_split

from flatbench.data.dataset import Examples, are_class_labels
from flatbench.errors import UsageError

# The splits are the same for every case and every run, so their seed is no one's to choose.
SEED = 0
TEST_FRACTION = 0.2  # the test part of a data set that has none, where data.test is not given


def split(part: Examples, taking: float, wish: str) -> tuple[Examples, Examples]:
    """Return a part less a fixed fraction (or number) of it, and what was taken.

    ``wish`` says what the split is for, to open an error with.

    Raises:
        UsageError: one of the two would be empty, or smaller than the number of classes.
    """
    inputs, targets = part
    stratify = targets if are_class_labels(targets) else None
    try:
        rest, taken = train_test_split(
            np.arange(len(targets)), test_size=taking, random_state=SEED, stratify=stratify
        )
    except ValueError:
        parts = "two parts of at least one example"
        if stratify is not None:
            count = len(np.unique(targets))
            parts = f"two parts of at least {count} examples, one of each class"
        raise UsageError(
            f"{wish} must split the {len(targets)} training examples into {parts}"
        ) from None
    rest, taken = np.sort(rest), np.sort(taken)
    return (inputs[rest], targets[rest]), (inputs[taken], targets[taken])
