"""Sharpness-aware minimization as a ``torch.optim.Optimizer``. Needs PyTorch alone."""

from .batchnorm import frozen_batchnorm
from .family import (
    GSAM,
    FriendlySAM,
    LateSAM,
    LookSAM,
    MicroBatchSAM,
    MomentumSAM,
    NormalizationSAM,
    PeriodicSAM,
    normalization_parameters,
)
from .half_steps import HalfSteps
from .sam import SAM

__all__ = [
    "GSAM",
    "SAM",
    "FriendlySAM",
    "HalfSteps",
    "LateSAM",
    "LookSAM",
    "MicroBatchSAM",
    "MomentumSAM",
    "NormalizationSAM",
    "PeriodicSAM",
    "frozen_batchnorm",
    "normalization_parameters",
]
