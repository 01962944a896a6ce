"""Sharpness-aware minimization as a ``torch.optim.Optimizer``. Needs PyTorch alone."""

from .batchnorm import frozen_batchnorm
from .sam import SAM

__all__ = ["SAM", "frozen_batchnorm"]
