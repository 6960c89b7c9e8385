"""BEVFormer (Li et al., ECCV 2022) as mmdet3d components."""

from .detector import BEVFormer
from .head import BEVFormerHead

__all__ = ["BEVFormer", "BEVFormerHead"]
