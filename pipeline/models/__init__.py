"""Detectors as mmdet3d components; importing this package registers them."""

from .bevformer import BEVFormer, BEVFormerHead
from .deform_conv import DeformConv2d
from .detr3d import DETR3D, DETR3DHead
from .preprocessor import FramePreprocessor

__all__ = ["DETR3D", "BEVFormer", "BEVFormerHead", "DETR3DHead", "DeformConv2d", "FramePreprocessor"]
