"""The expert seen from outside: a detector run frame by frame, tapped by module path through an adapter."""

from .adapters import BEVFormerAdapter, DETR3DAdapter, ExpertAdapter
from .detections import Detections
from .foreign import DetectorAdapter, MonocularAdapter, MultiViewAdapter
from .frame import BEVReading, CameraReading, ExpertFrame
from .tapped import TappedExpert, adapter_of, build_adapter

__all__ = [
    "BEVFormerAdapter",
    "BEVReading",
    "CameraReading",
    "DETR3DAdapter",
    "Detections",
    "DetectorAdapter",
    "ExpertAdapter",
    "ExpertFrame",
    "MonocularAdapter",
    "MultiViewAdapter",
    "TappedExpert",
    "adapter_of",
    "build_adapter",
]
