"""Distillers around any student detector, one per method, their losses and the modules that exist in training only."""

from .base import Distiller
from .build import distiller_config
from .methods import load_method, method_names
from .methods.fd3d import FocalDistiller
from .settings import DistillSettings, MethodSettings, from_mapping

__all__ = [
    "DistillSettings",
    "Distiller",
    "FocalDistiller",
    "MethodSettings",
    "distiller_config",
    "from_mapping",
    "load_method",
    "method_names",
]
