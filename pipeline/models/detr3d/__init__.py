"""DETR3D (Wang et al., CoRL 2021) as mmdet3d components."""

from .detector import DETR3D
from .head import DETR3DHead

__all__ = ["DETR3D", "DETR3DHead"]
