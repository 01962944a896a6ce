"""Logits of one length, so that a measure does not depend on how large a network's logits are."""

from __future__ import annotations

from torch import Tensor

from .surface import Loss

SMALLEST = 1e-10  # a length below which logits are not scaled up


def normalised_logits(logits: Tensor) -> Tensor:
    """Return each example's logits (n, classes) less their mean, and divided by their length.

    Longer training inflates the logits, and with them or against them every measure of sharpness,
    while the predictions stay as they are. Andriushchenko et al. 2023 (arXiv:2302.07011), as their
    code has it: the length is the Euclidean norm, and nothing is learned or added.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    length: Tensor = centred.norm(dim=1, keepdim=True)
    return centred / length.clamp_min(SMALLEST)


def on_normalised_logits(loss: Loss) -> Loss:
    """Return the loss of `normalised_logits`; of K classes a cross-entropy is never near 0 then.

    Its least value is log(1 + (K − 1)·exp(−√(K/(K − 1)))), 1.42 of ten classes.
    """
    return lambda outputs, targets: loss(normalised_logits(outputs), targets)
