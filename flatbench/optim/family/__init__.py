"""The methods of the SAM family, one a module: what differs from SAM, and whose rule it is."""

from .friendly import FriendlySAM
from .gsam import GSAM
from .looksam import LookSAM
from .micro_batch import MicroBatchSAM
from .momentum import MomentumSAM
from .normalization import NormalizationSAM, normalization_parameters
from .periodic import LateSAM, PeriodicSAM

__all__ = [
    "GSAM",
    "FriendlySAM",
    "LateSAM",
    "LookSAM",
    "MicroBatchSAM",
    "MomentumSAM",
    "NormalizationSAM",
    "PeriodicSAM",
    "normalization_parameters",
]
