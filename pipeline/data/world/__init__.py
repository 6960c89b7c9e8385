"""The embedded world: a small synthetic data set in nuScenes' format that anyone can regenerate from a seed."""

from .config import WorldConfig
from .generate import generate_world

__all__ = ["WorldConfig", "generate_world"]
