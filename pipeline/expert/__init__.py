"""The expert seen from outside: a detector run frame by frame, tapped by module path through an adapter."""

from .adapters import BEVFormerAdapter, DetectorAdapter, DETR3DAdapter, ExpertAdapter
from .frame import BEVReading, CameraReading, ExpertFrame
from .tapped import TappedExpert, build_adapter

__all__ = [
    "BEVFormerAdapter",
    "BEVReading",
    "CameraReading",
    "DETR3DAdapter",
    "DetectorAdapter",
    "ExpertAdapter",
    "ExpertFrame",
    "TappedExpert",
    "build_adapter",
]
