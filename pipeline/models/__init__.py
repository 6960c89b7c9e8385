"""Detectors as mmdet3d components; importing this package registers them."""

from .bevformer import BEVFormer, BEVFormerHead
from .preprocessor import FramePreprocessor

__all__ = ["BEVFormer", "BEVFormerHead", "FramePreprocessor"]
