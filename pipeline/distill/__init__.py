"""FD3D's losses, the training-only modules around them, and the distiller that joins them to a detector."""

from .distiller import FocalDistiller, distiller_config
from .settings import DistillSettings, from_mapping

__all__ = ["DistillSettings", "FocalDistiller", "distiller_config", "from_mapping"]
